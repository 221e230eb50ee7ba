"""Servers for all tests of the sample."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stage import Http, Process, Stage, stage
from testkit import servers


@pytest.fixture(scope="session")
def urls() -> Iterator[dict[str, str]]:
    """Of the servers, by name."""
    with servers("postgres", "clickhouse", "clickhouse18", "redis") as started:
        yield started


@pytest.fixture(scope="module")
def shared(urls: dict[str, str]) -> Iterator[Stage]:
    """One stage for all tests of a module."""
    with stage(urls) as made:
        yield made


@pytest.fixture(scope="module")
def app(shared: Stage) -> tuple[Process, Http]:
    """The sample, serving."""
    return shared.start_app()


@pytest.fixture
def http(app: tuple[Process, Http], shared: Stage) -> Http:
    """A client of the sample, whose tables are empty."""
    import psycopg

    with psycopg.connect(shared.database_url, autocommit=True) as admin:
        admin.execute("truncate public.users, pillarbox.event")
    return app[1]
