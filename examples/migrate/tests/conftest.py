"""Servers for all guides."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from testkit import servers


@pytest.fixture(scope="session")
def urls() -> Iterator[dict[str, str]]:
    """Of the servers, by name."""
    with servers("postgres", "clickhouse", "redis") as started:
        yield started
