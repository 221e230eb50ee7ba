"""The Django migrations, beside whatever is installed already."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings
from testkit import pillarbox as program

import pillarbox
from pillarbox import schema
from pillarbox.django import installation

EVENT = "insert into pillarbox.event (event_type, event_context) values ('any', '{}')"


@pytest.fixture
def alias(empty_database: str, django_db_blocker: Any) -> Iterator[str]:
    """A database of Django without the schema."""
    with django_db_blocker.unblock():
        yield from connected("scratch", empty_database)


def connected(alias: str, url: str, user: str = "postgres") -> Iterator[str]:
    server = urlsplit(url)
    connections.databases[alias] = connections.configure_settings(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": server.path[1:],
                "USER": user,
                "HOST": server.hostname,
                "PORT": server.port,
            }
        }
    )["default"]
    yield alias
    connections[alias].close()
    del connections[alias]
    del connections.databases[alias]


def migrate(alias: str, *target: str) -> str:
    out = io.StringIO()
    call_command("migrate", *target, database=alias, stdout=out)
    return out.getvalue()


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as session:
        cursor = session.execute(sql)
        return cursor.fetchall() if cursor.description else []


def versions(url: str) -> list[int]:
    sql = "select version from pillarbox.schema_version order by version"
    return [version for (version,) in query(url, sql)]


def check(alias: str) -> tuple[int, dict[str, dict[str, str]]]:
    out = io.StringIO()
    try:
        call_command("pillarbox_check", database=alias, json=True, stdout=out)
        code = 0
    except CommandError as error:
        code = error.returncode
    return code, {finding["check"]: finding for finding in json.loads(out.getvalue())}


def test_a_migration_installs_what_the_program_works_with(alias: str, empty_database: str) -> None:
    migrate(alias)
    assert versions(empty_database)[-1] == schema.version()
    assert "up-to-date" in program("migrate", "--json", env={"DATABASE_URL": empty_database})
    assert "No migrations to apply" in migrate(alias)
    code, findings = check(alias)
    assert code == 0, findings
    assert {finding["level"] for finding in findings.values()} == {"ok"}
    assert query(empty_database, "select count(*) from pillarbox.event") == [(0,)]


def test_beside_what_the_program_installed_it_does_nothing(alias: str, empty_database: str) -> None:
    program("migrate", env={"DATABASE_URL": empty_database})
    query(empty_database, EVENT)
    migrate(alias)
    assert query(empty_database, "select count(*) from pillarbox.event") == [(1,)]
    assert "No migrations to apply" in migrate(alias)


def test_beside_a_newer_schema_it_does_nothing_and_does_not_drop_it(
    alias: str, empty_database: str
) -> None:
    program("migrate", env={"DATABASE_URL": empty_database})
    query(empty_database, "insert into pillarbox.schema_version values (999)")
    migrate(alias)
    assert check(alias)[0] == 0
    with pytest.raises(pillarbox.PillarboxError, match="version 999, this package knows"):
        migrate(alias, "pillarbox", "zero")
    assert versions(empty_database)[-1] == 999


def test_an_older_schema_is_upgraded(alias: str, empty_database: str) -> None:
    text = program("migrate", "--print", env={})
    query(empty_database, text[: text.index("\n-- 08_")] + "\ncommit;")
    assert versions(empty_database) == [1]
    assert check(alias)[1]["schema"]["level"] == "warning"
    migrate(alias)
    assert versions(empty_database)[-1] == schema.version()


def test_it_is_reversed_when_everything_is_delivered(alias: str, empty_database: str) -> None:
    migrate(alias)
    query(empty_database, EVENT)
    with pytest.raises(pillarbox.PillarboxError, match="holds 1 events and no sink is registered"):
        migrate(alias, "pillarbox", "zero")
    query(empty_database, "select pillarbox.register_sink('main', 'x', 1, false)")
    with pytest.raises(pillarbox.PillarboxError, match="not delivered yet: 1 of sink main"):
        migrate(alias, "pillarbox", "zero")
    with psycopg.connect(empty_database) as publisher:
        publisher.execute("select pillarbox.publish('any', '{}')")
        with pytest.raises(pillarbox.PillarboxError, match="in use by an open transaction"):
            migrate(alias, "pillarbox", "zero")
    query(empty_database, "truncate pillarbox.event")
    migrate(alias, "pillarbox", "zero")
    gone = "select count(*) from pg_namespace where nspname = 'pillarbox'"
    assert query(empty_database, gone) == [(0,)]
    migrate(alias)
    assert check(alias)[0] == 0


@pytest.mark.parametrize("level", ["read committed", "serializable"])
def test_many_at_once_install_it_once(alias: str, empty_database: str, level: str) -> None:
    database = urlsplit(empty_database).path[1:]
    query(
        empty_database, f"alter database {database} set default_transaction_isolation = '{level}'"
    )
    failures: list[BaseException] = []

    def run() -> None:
        connection = connections[alias]
        try:
            from django.db import transaction

            with transaction.atomic(alias):
                installation.migrate(connection, schema.version())
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert versions(empty_database) == list(range(1, schema.version() + 1))


def test_publishers_named_in_the_settings_may_publish(alias: str, empty_database: str) -> None:
    with override_settings(PILLARBOX={"PUBLISHERS": ["django app"]}):
        with pytest.raises(pillarbox.PillarboxError, match="no user 'django app'"):
            migrate(alias)
        query(empty_database, 'create role "django app" login')
        for _ in connected("app", empty_database, "django app"):
            code, findings = check("app")
            assert (code, findings["rights"]["level"]) == (3, "problem")
            assert findings["schema"]["level"] == "skipped"
            assert "grant" in findings["rights"]["remedy"]
            migrate(alias)
            code, findings = check("app")
            assert code == 0, findings
            with pytest.raises(pillarbox.MissingRights, match="may not be read"):
                installation.installed_version(connections["app"])
        migrate(alias)


def test_an_ordinary_user_with_the_two_rights_migrates_and_publishes(
    alias: str, empty_database: str
) -> None:
    database = urlsplit(empty_database).path[1:]
    query(
        empty_database,
        f"create role creator login createrole; grant create on database {database} to creator; "
        "grant create on schema public to creator",
    )
    for _ in connected("creator", empty_database, "creator"):
        migrate("creator")
        code, findings = check("creator")
        assert code == 0, findings
        migrate("creator", "pillarbox", "zero")
        assert check("creator")[0] == 3


def test_missing_rights_name_who_can_help(alias: str, empty_database: str) -> None:
    query(empty_database, "create role weak login; grant create on schema public to weak")
    for _ in connected("weak", empty_database, "weak"):
        with pytest.raises(pillarbox.MissingRights, match="sqlmigrate pillarbox 0001"):
            migrate("weak")


def test_sqlmigrate_prints_what_installs_it(alias: str, empty_database: str) -> None:
    out = io.StringIO()
    call_command("sqlmigrate", "pillarbox", "0001", database=alias, stdout=out)
    query(empty_database, out.getvalue())
    assert versions(empty_database)[-1] == schema.version()
    migrate(alias)
    assert check(alias)[0] == 0


def test_without_migrations_the_schema_is_installed_all_the_same(
    alias: str, empty_database: str
) -> None:
    with override_settings(MIGRATION_MODULES={"pillarbox": None}):
        call_command("migrate", database=alias, run_syncdb=True, stdout=io.StringIO())
    assert versions(empty_database)[-1] == schema.version()


def test_check_names_what_is_missing(alias: str, empty_database: str) -> None:
    code, findings = check(alias)
    assert (code, findings["schema"]["level"]) == (3, "problem")
    assert "manage.py migrate" in findings["schema"]["remedy"]
    migrate(alias)
    program("settings", "--event-bytes-max", "1000", env={"DATABASE_URL": empty_database})
    code, findings = check(alias)
    assert (code, findings["limit"]["level"]) == (0, "warning")
    query(empty_database, "alter table pillarbox.event rename to elsewhere")
    assert check(alias)[0] == 3


def test_check_prints_for_people(alias: str) -> None:
    migrate(alias)
    out = io.StringIO()
    call_command("pillarbox_check", database=alias, stdout=out, no_color=True)
    lines = out.getvalue().splitlines()
    assert lines[-1] == "ok       publish: an event was published and rolled back"


def test_check_sees_a_pooler(empty_database: str, urls: dict[str, str], alias: str) -> None:
    migrate(alias)
    pooled = urlsplit(urls["pgbouncer"])._replace(path=urlsplit(empty_database).path).geturl()
    for _ in connected("pooled", pooled):
        code, findings = check("pooled")
        assert (code, "through a pooler" in findings["pooler"]["message"]) == (0, True)
    assert "directly" in check(alias)[1]["pooler"]["message"]


@pytest.mark.usefixtures("alias")
def test_check_tells_a_server_that_is_away() -> None:
    for _ in connected("away", "postgresql://postgres@127.0.0.1:1/nowhere"):
        code, findings = check("away")
        assert (code, list(findings)) == (4, ["server"])
