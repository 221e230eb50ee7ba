"""The sample on real servers: its database, its table in ClickHouse, and its processes."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from testkit import ROOT, built, eventually, pillarbox

SAMPLE = ROOT / "examples/django"

_NUMBERS = itertools.count(1)

#: A worker without others to look for is ready seconds earlier.
_ALONE = ("--without-gossip", "--without-mingle", "--without-heartbeat")

#: How long a process may take to end when asked to.
_STOP_DEADLINE_S = 60


class Process:
    """A process and its children, in a group of its own. It dies with this process."""

    def __init__(self, name: str, arguments: list[str], env: Mapping[str, str]) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *arguments],
            cwd=SAMPLE,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        """What it has written."""
        return os.pread(self._log.fileno(), 1 << 30, 0).decode()

    def says(self, pattern: str) -> re.Match[str]:
        """Waits until it has written something."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.log)
            if found is None and self._process.poll() is not None:
                raise AssertionError(f"{self.name} ended: {self.log}")
            return found

        return eventually(f"{self.name} to say {pattern}", look)

    def lines(self) -> list[dict[str, Any]]:
        """Its log, where that is JSON."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def runs(self, words: str) -> bool:
        """Whether a process of its group has these words in its command."""
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                stat = (directory / "stat").read_text().rpartition(")")[2].split()
                command = (directory / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if int(stat[2]) == self._process.pid and words in command:
                return True
        return False

    def kill(self) -> None:
        """`kill -9` of it and its children."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_STOP_DEADLINE_S)

    def stop(self) -> int:
        """SIGTERM, and waits for the end."""
        self._process.terminate()
        return self._process.wait(_STOP_DEADLINE_S)

    def close(self) -> None:
        """Nothing of it is left."""
        try:
            self.kill()
        except ProcessLookupError:
            self._process.wait(_STOP_DEADLINE_S)
        self._log.close()


class Stage:
    """A database with the sample's tables and the outbox, and a sink for it."""

    def __init__(self, urls: Mapping[str, str], engine: str, stack: ExitStack) -> None:
        self.stack = stack
        name = f"sample_{next(_NUMBERS)}"
        server = urlsplit(urls["postgres"])
        with psycopg.connect(server.geturl(), autocommit=True) as admin:
            admin.execute(f"create database {name} template template0")
        self.database_url = server._replace(path=f"/{name}").geturl()
        self.clickhouse_url = urls[engine]
        self.table = name
        paths = [ROOT / "clients/python/src", SAMPLE]
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONUNBUFFERED": "1",
            "DATABASE_URL": self.database_url,
            "CLICKHOUSE_URL": self.clickhouse_url,
            "PILLARBOX_SINKS__CLICKHOUSE__TABLE": self.table,
            "PILLARBOX": str(built("pillarbox")),
            "LISTEN": "127.0.0.1:0",
            "LOG_FORMAT": "json",
            "REDIS_URL": urls["redis"],
        }
        self.manage("migrate", "--verbosity", "0")
        self.pillarbox("sink", "create")

    def manage(self, *arguments: str) -> str:
        """`manage.py`."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=SAMPLE,
            env=self.env,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def pillarbox(self, *arguments: str) -> str:
        """The program, in the environment of the sample."""
        return pillarbox(*arguments, env=self.env)

    def start(self, name: str, *arguments: str, **env: str) -> Process:
        """A process in the environment of the sample, which ends with the stage."""
        process = Process(name, list(arguments), {**self.env, **env})
        self.stack.callback(process.close)
        return process

    def start_app(self, **env: str) -> tuple[Process, Http]:
        """gunicorn, when it listens."""
        app = self.start(
            "gunicorn", sys.executable, "-m", "gunicorn", "sample.wsgi", "--workers", "1", **env
        )
        return app, Http(app.says(r"Listening at: (http://[0-9.:]+)").group(1))

    def start_worker(self, **env: str) -> Process:
        """A Celery worker, when it takes tasks."""
        worker = self.start("worker", *_celery("worker", "--concurrency", "2", *_ALONE), **env)
        worker.says(r"ready\.")
        return worker

    def start_beat(self, directory: Path, **env: str) -> Process:
        """Celery beat. To be killed: SIGTERM within a tick makes it fail at its closed schedule."""
        schedule = str(directory / "schedule")
        return self.start("beat", *_celery("beat", "--schedule", schedule), **env)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Asks PostgreSQL."""
        with psycopg.connect(self.database_url) as session:
            return session.execute(sql).fetchall()

    def arrived(self, columns: str = "toString(event_id)") -> list[list[Any]]:
        """Rows of the table in ClickHouse."""
        sql = f"select {columns} from {self.table} format JSONEachRow"
        lines = clickhouse(self.clickhouse_url, sql).splitlines()
        return [list(json.loads(line).values()) for line in lines]


class Http:
    """A client of the sample."""

    def __init__(self, base: str) -> None:
        self.base = base

    def call(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"
    ) -> tuple[int, Any]:
        """Status and JSON."""
        request = urllib.request.Request(
            self.base + path, data=body, method=method, headers={"content-type": kind}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")

    def create(self, email: str, **fields: Any) -> tuple[int, Any]:
        """`POST /users`."""
        user = {"email": email, "first_name": "Ada", "last_name": "Lovelace", **fields}
        return self.call("POST", "/users", json.dumps(user).encode())


def clickhouse(url: str, sql: str) -> str:
    """Asks ClickHouse."""
    parts = urlsplit(url)
    secret = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
    request = urllib.request.Request(
        f"http://{parts.hostname}:{parts.port}/?database={parts.path[1:]}",
        data=sql.encode(),
        headers={"authorization": f"Basic {secret}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


@contextmanager
def stage(urls: Mapping[str, str], engine: str = "clickhouse") -> Iterator[Stage]:
    """A stage; its processes end with it."""
    with ExitStack() as stack:
        yield Stage(urls, engine, stack)


def _celery(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "--app", "sample", *arguments, "--loglevel", "info"]
