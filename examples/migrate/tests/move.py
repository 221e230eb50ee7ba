"""A guide, carried out on real servers: the old system, the new one, traffic, and the counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from guide import blocks
from stage import Process, clickhouse
from testkit import ROOT, built, eventually

HERE = ROOT / "examples/migrate"

#: The user of the application: owner of its tables, and no more.
APP_USER = "app_user"

_ALONE = ("--without-gossip", "--without-mingle", "--without-heartbeat")

#: The table as it is before: the five columns.
_FIVE_COLUMNS = """
    create table events (
        event_type String, event_date_time DateTime, environment String, event_context String,
        metadata_version UInt64
    ) engine = MergeTree partition by toYYYYMM(event_date_time)
    order by (event_type, event_date_time)
"""

#: What a row of the old way has.
_NO_ID = "00000000-0000-0000-0000-000000000000"

#: Ends the session that runs a DO of the guide and waits for a lock.
_END_MOVE = """
    select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity
    where usename = 'app_user' and wait_event_type = 'Lock' and query like 'do $$%'
"""


class Producer:
    """Creates users one after another until it is told to stop; knows which were acknowledged."""

    def __init__(self, create: Callable[[str], None], name: str) -> None:
        self.acknowledged: list[str] = []
        self._create, self._name = create, name
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                email = f"{self._name}-{len(self.acknowledged)}@example.org"
                self._create(email)
                self.acknowledged.append(email)
        except Exception as error:  # noqa: BLE001
            self._failure = error

    def reaches(self, users: int) -> None:
        """Waits until it has created so many more."""
        wanted = len(self.acknowledged) + users

        def look() -> bool:
            if self._failure is not None:
                raise self._failure
            return len(self.acknowledged) >= wanted

        eventually(f"{self._name} to create {users} users", look)

    def stop(self) -> list[str]:
        """Waits for its last user."""
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.acknowledged


class Move:
    """One guide and everything that it needs."""

    def __init__(
        self, name: str, urls: Mapping[str, str], directory: Path, stack: ExitStack
    ) -> None:
        self.name, self._stack = name, stack
        self.blocks = blocks(name)
        self._used: set[str] = set()
        self._directory = directory
        server = urlsplit(urls["postgres"])
        database = name.replace("-", "_")
        with psycopg.connect(server.geturl(), autocommit=True) as admin:
            exists = admin.execute("select from pg_roles where rolname = %s", [APP_USER])
            if exists.fetchone() is None:
                admin.execute(f"create role {APP_USER} login")
            admin.execute(f"drop database if exists {database} with (force)")
            admin.execute(f"create database {database} owner {APP_USER} template template0")
        self._admin_url = server._replace(path=f"/{database}").geturl()
        app = server._replace(netloc=f"{APP_USER}@{server.hostname}:{server.port}")
        self.app_url = app._replace(path=f"/{database}").geturl()
        self.clickhouse_url = urls["clickhouse"]
        self.redis_url = urls["redis"]
        clickhouse(self.clickhouse_url, "drop table if exists events")
        clickhouse(self.clickhouse_url, _FIVE_COLUMNS)
        paths = [directory, HERE, ROOT / "clients/python/src"]
        self.app_env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "DATABASE_URL": self.app_url,
            "CLICKHOUSE_URL": self.clickhouse_url,
            "REDIS_URL": self.redis_url,
        }
        self._operator_env = {
            "PATH": f"{built('pillarbox').parent}:{os.environ['PATH']}",
            "DATABASE_URL": self._admin_url,
            "CLICKHOUSE_URL": self.clickhouse_url,
            "REDIS_URL": self.redis_url,
            "PILLARBOX_CONSOLE__LISTEN": "off",
        }
        for block, code in self.blocks.items():
            if block.endswith((".py", ".toml")):
                (directory / block).write_text(code)
        self.django("migrate", "--run-syncdb", "--verbosity", "0")

    def take(self, block: str) -> str:
        """A block of the guide, which is thereby used."""
        self._used.add(block)
        return self.blocks[block]

    def shell(self, block: str) -> str:
        """Runs commands of the guide, as the operator."""
        return self._run(["bash", "-euo", "pipefail", "-c", self.take(block)], self._operator_env)

    def python(self, block: str) -> str:
        """Runs a script of the guide, as the application."""
        self.take(block)
        return self._run([sys.executable, str(self._directory / block)], self.app_env)

    def sql(self, block: str) -> None:
        """Runs SQL of the guide in psql, as the application."""
        psql = ["psql", "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", self.app_url]
        self._run([*psql, "--command", self.take(block)], self.app_env)

    def interrupted(self, block: str) -> None:
        """Runs SQL of the guide as :meth:`sql` does, and ends its session within a transaction."""
        with psycopg.connect(self._admin_url) as locks, ThreadPoolExecutor() as pool:
            locks.execute("lock table pillarbox.event in share mode")
            moving = pool.submit(self.sql, block)
            # A transaction would see the activity of its first look again and again.
            eventually("the move to wait for the lock", lambda: self.query(_END_MOVE))
            failed = moving.exception()
        assert "terminating connection" in str(failed)

    def clickhouse(self, block: str) -> str:
        """Runs statements of the guide in ClickHouse."""
        statements = [part.strip() for part in self.take(block).split(";")]
        return "".join(clickhouse(self.clickhouse_url, part) for part in statements if part)

    def django(self, *arguments: str) -> str:
        """`django-admin`, as the application."""
        return self._run([sys.executable, "-m", "django", *arguments], self.app_env)

    def _run(self, command: list[str], env: Mapping[str, str]) -> str:
        done = subprocess.run(
            command, cwd=self._directory, env=dict(env), check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise AssertionError(f"{command}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, name: str, *arguments: str, **env: str) -> Process:
        """A process of the application, which ends with the move."""
        return self._start(name, list(arguments), {**self.app_env, **env})

    def daemon(self, block: str) -> Process:
        """The command of a block, which runs on."""
        line = f"cd {self._directory} && exec {self.take(block)}"
        return self._start(block, ["bash", "-euc", line], self._operator_env)

    def _start(self, name: str, arguments: list[str], env: Mapping[str, str]) -> Process:
        process = Process(name, arguments, env)
        self._stack.callback(process.close)
        return process

    def app(self, module: str) -> tuple[Process, Callable[[str], None]]:
        """The application with the `create_user` of a block; its process, and a call of it."""
        self.take(f"{module}.py")
        options = ("--workers", "1", "--threads", "4", "--bind", "127.0.0.1:0")
        gunicorn = ("-m", "gunicorn", "shop.wsgi", *options)
        process = self.start(module, sys.executable, *gunicorn, CREATE_USER=f"{module}.create_user")
        base = process.says(r"Listening at: (http://[0-9.:]+)").group(1)

        def create(email: str) -> None:
            request = urllib.request.Request(f"{base}/{email}", method="POST")
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    assert answer.status == 201
            except urllib.error.HTTPError as error:
                with error:
                    raise AssertionError(f"{module}: {error}: {process.log}") from None

        return process, create

    def producer(self, create: Callable[[str], None], name: str) -> Producer:
        """Traffic, which ends with the move at the latest."""
        made = Producer(create, name)
        self._stack.callback(made._stop.set)
        return made

    def worker(self, module: str, **env: str) -> Process:
        """A Celery worker with the task of a block."""
        self.take(f"{module}.py")
        options = ("--concurrency", "1", "--pool", "solo", "--loglevel", "info", *_ALONE)
        celery = ("-m", "celery", "--app", "shop", "worker", *options)
        worker = self.start(module, sys.executable, *celery, SHIP=module, **env)
        worker.says(r"ready\.")
        return worker

    def beat(self) -> Process:
        """Celery beat. To be killed: SIGTERM within a tick makes it fail at its closed schedule."""
        schedule = str(self._directory / "schedule")
        celery = ("-m", "celery", "--app", "shop", "beat", "--schedule", schedule)
        return self.start("beat", sys.executable, *celery)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Asks PostgreSQL."""
        with psycopg.connect(self._admin_url) as session:
            return session.execute(sql).fetchall()

    def count(self, sql: str) -> int:
        """One number of PostgreSQL."""
        return int(self.query(f"select count(*) {sql}")[0][0])

    def rows(self, columns: str, where: str = "1") -> list[tuple[Any, ...]]:
        """Rows of the table in ClickHouse."""
        sql = f"select {columns} from events where {where} format JSONCompactEachRow"
        lines = clickhouse(self.clickhouse_url, sql).splitlines()
        return [tuple(json.loads(line)) for line in lines]

    def arrived(self, where: str = "1") -> int:
        """How many rows are in ClickHouse."""
        return int(clickhouse(self.clickhouse_url, f"select count() from events where {where}"))

    def settle(self) -> None:
        """Waits until everything that is published has arrived."""
        published = self.count("from pillarbox.event")
        eventually("all events", lambda: self.arrived("batch <> 0") >= published)

    def differences(
        self, acknowledged: Counter[tuple[str, str]]
    ) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
        """What is lost, and what is there too often."""
        rows = self.rows("event_type, event_context")
        found = Counter((kind, json.loads(context)["email"]) for kind, context in rows)
        return acknowledged - found, found - acknowledged

    def check(self, acknowledged: Counter[tuple[str, str]], waiting_before: int) -> None:
        """Each acknowledged event is there once, by content and by id; prints the counts."""
        rows = self.rows("toString(event_id), batch")
        old = sum(int(batch) == 0 for _, batch in rows)
        ids = Counter(event_id for event_id, _ in rows if event_id != _NO_ID)
        published = {str(row[0]) for row in self.query("select event_id from pillarbox.event")}
        delivered = Counter(row[0] for row in self.rows("toString(event_id)", "batch <> 0"))
        lost, duplicated = self.differences(acknowledged)
        print(
            f"\nguide={self.name} waiting_before={waiting_before} old_delivered={old} "
            f"published={len(published)} delivered={delivered.total()} "
            f"lost={lost.total()} duplicated={duplicated.total()}"
        )
        assert (lost, duplicated) == (Counter(), Counter())
        assert set(delivered) == published
        assert set(delivered.values()) == {1}
        assert set(ids.values()) == {1}
        assert self.count("from pillarbox.dead_letter") == 0
        unused = set(self.blocks) - self._used - {n for n in self.blocks if n.endswith(".toml")}
        assert unused == set(), "blocks of the guide that nothing has run"


@contextmanager
def move(name: str, urls: Mapping[str, str], directory: Path) -> Iterator[Move]:
    """A guide that is to be carried out; its processes end with it."""
    with ExitStack() as stack:
        yield Move(name, urls, directory, stack)


def users(emails: list[str], *event_types: str) -> Counter[tuple[str, str]]:
    """The events that these users are."""
    return Counter((kind, email) for kind in event_types for email in emails)
