"""PostgreSQL for all tests, and Django configured on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import psycopg
import pytest
from testkit import servers

pytest_plugins = ["pytester"]

_started = ExitStack()
_urls: dict[str, str] = {}
_numbers = itertools.count(1)


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Before pytest-django looks for settings."""
    try:
        _urls.update(_started.enter_context(servers("postgres", "pgbouncer")))
    except (RuntimeError, FileNotFoundError) as error:
        pytest.exit(str(error), returncode=1)
    from django.conf import settings

    server = urlsplit(_urls["postgres"])
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "django",
        "USER": "postgres",
        "HOST": server.hostname,
        "PORT": server.port,
    }
    settings.configure(
        DATABASES={"default": database, "other": {**database, "NAME": "other"}},
        INSTALLED_APPS=["pillarbox.django"],
        USE_TZ=True,
    )


def pytest_unconfigure() -> None:
    """Ends the servers."""
    _started.close()


@pytest.fixture(scope="session")
def urls() -> dict[str, str]:
    """Of the servers, by name."""
    return _urls


@pytest.fixture(scope="session")
def shared_database(urls: dict[str, str]) -> Iterator[str]:
    """Copied, because what the pooler holds open cannot be copied later."""
    yield from _database(urls["postgres"], "outbox")


@pytest.fixture
def database(shared_database: str) -> str:
    """The URL of a database with an empty outbox. Its schema stays as it is."""
    with psycopg.connect(shared_database, autocommit=True) as admin:
        admin.execute("truncate pillarbox.event")
    return shared_database


@pytest.fixture
def own_database(urls: dict[str, str]) -> Iterator[str]:
    """The URL of a database with an outbox whose schema a test may change."""
    yield from _database(urls["postgres"], "outbox")


@pytest.fixture
def empty_database(urls: dict[str, str]) -> Iterator[str]:
    """The URL of a database without the schema."""
    yield from _database(urls["postgres"], "template0")


def _database(server: str, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    postgres = urlsplit(server)._replace(path="/postgres").geturl()
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"create database {name} template {template}")
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
        admin.execute(f"drop database {name} with (force)")
