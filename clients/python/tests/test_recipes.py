"""The programs of docs/RECIPES.md, as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from testkit import ROOT

#: What `make setup` has installed beside the interpreter of these tests.
NODE_MODULES = Path(sys.prefix) / "node/node_modules"
JDBC = "/usr/share/java/postgresql.jar"

RUN = {
    "js": ["node", "{file}"],
    "java": ["java", "-cp", JDBC, "{file}"],
    "ruby": ["ruby", "{file}"],
}
NAMES = {"js": "create_user.js", "java": "CreateUser.java", "ruby": "create_user.rb"}

#: Its toolchain takes half a gigabyte.
NOT_RUN = {"go"}

EMAIL = 'zoë "z" \\ 100%@example.org'


def programs() -> dict[str, str]:
    text = (ROOT / "docs/RECIPES.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    found = {language: code for language, code in blocks if language != "sql"}
    assert len(found) == len([language for language, _ in blocks if language != "sql"])
    return found


def test_every_language_is_run() -> None:
    assert set(programs()) == set(RUN) | NOT_RUN


@pytest.mark.parametrize("language", list(RUN))
def test_the_program_publishes_in_its_transaction(
    language: str, own_database: str, tmp_path: Path
) -> None:
    with psycopg.connect(own_database) as admin:
        admin.execute("create table public.users (email text unique)")
    file = tmp_path / NAMES[language]
    file.write_text(programs()[language])
    server = urlsplit(own_database)
    env = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "DATABASE_URL": own_database,
        "JDBC_URL": f"jdbc:postgresql://{server.netloc.partition('@')[2]}{server.path}?user=postgres",
        "NODE_PATH": str(NODE_MODULES),
    }
    command = [word.format(file=file) for word in RUN[language]]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, EMAIL], env=env, capture_output=True, text=True, check=False
        )

    created = run()
    assert created.returncode == 0, created.stderr
    again = run()
    assert again.returncode != 0
    assert "duplicate key" in again.stderr
    with psycopg.connect(own_database) as admin:
        sql = "select event_id::text, event_type, event_context::text from pillarbox.event"
        ((event_id, event_type, context),) = admin.execute(sql).fetchall()
        assert admin.execute("select email from public.users").fetchall() == [(EMAIL,)]
    assert (created.stdout.strip(), event_type) == (event_id, "user_created")
    assert json.loads(context) == {"email": EMAIL}
