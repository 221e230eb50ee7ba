"""The client of ClickHouse, and the fault that the tests inject into it."""

from __future__ import annotations

import functools
import os
import signal
import threading
from typing import Any

import clickhouse_connect


@functools.cache
def _client(_: int) -> Any:
    # The front of the tests has neither sessions nor compressed requests.
    return clickhouse_connect.get_client(
        dsn=os.environ["CLICKHOUSE_URL"], autogenerate_session_id=False, compress=False
    )


def client() -> Any:
    """One for each thread."""
    return _client(threading.get_ident())


def insert(rows: list[list[Any]], columns: list[str]) -> None:
    """Inserts, or stops for good before or after it, where HOLD says so, to be killed there."""
    hold = os.environ.get("HOLD")
    if hold == "before":
        _hold()
    client().insert("events", rows, column_names=columns)
    if hold == "after":
        _hold()


def _hold() -> None:
    print("held", flush=True)  # noqa: T201
    while True:
        signal.pause()
