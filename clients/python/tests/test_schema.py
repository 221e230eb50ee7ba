"""What the package ships, against the program and as a wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from testkit import ROOT, pillarbox

from pillarbox import schema

REMEDY = "run `make python-schema` and commit what it made"


def test_the_sql_is_what_the_program_prints() -> None:
    for installed in range(schema.version()):
        printed = pillarbox("migrate", "--print", "--from", str(installed), env={})
        assert schema.script(installed) == printed, REMEDY
    # A newer version of the program would print a step from ours.
    step = pillarbox("migrate", "--print", "--from", str(schema.version()), env={})
    assert "\n-- " not in step.partition("lock_timeout")[2], REMEDY


@pytest.mark.parametrize("name", ["lock_outbox", "outbox_events", "undelivered", "uninstall"])
def test_the_sql_of_uninstall_is_the_programs(name: str) -> None:
    file = ROOT / f"crates/pillarbox-cli/src/command/sql/{name}.sql"
    lines = file.read_text().replace("$1", "%s").splitlines(keepends=True)
    assert schema.read(name) == "".join(line for line in lines if line[:2] != "--"), REMEDY


def test_each_version_from_the_first_has_a_migration() -> None:
    directory = ROOT / "clients/python/src/pillarbox/django/migrations"
    found = sorted(file.stem for file in directory.glob("0*.py"))
    first = int(found[0].rpartition("_")[2])
    wanted = [f"{at:04}_schema_{first + at - 1}" for at in range(1, schema.version() - first + 2)]
    assert found == wanted, REMEDY


WITH_THE_WHEEL = """
import pytest
from pillarbox import Recorder, schema

def test_the_fixture_is_found(published_events):
    assert isinstance(published_events, Recorder)
    assert "create table pillarbox.event" in schema.statements(0)
"""


def test_a_wheel_has_everything(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    # A copy, because building writes into the sources.
    subprocess.run(["cp", "-r", ROOT / "clients/python", source], check=True)
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(installed)
    for name in ("py.typed", "schema/from_0.sql", "django/migrations/0001_schema_2.py"):
        assert f"pillarbox/{name}" in names
    assert not any(name.startswith("tests") for name in names)
    (tmp_path / "test_installed.py").write_text(WITH_THE_WHEEL)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:django", "test_installed.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
