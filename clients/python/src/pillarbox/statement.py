"""The statements that publish. Every value is a parameter; types are cast, so that each driver may
send text."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Sequence
from typing import Any

from pillarbox.event import RawEvent

#: Events in one statement, and bytes of context unless one event alone has more: as the Rust crate.
#: More save no round trip worth having, and PostgreSQL holds the arrays about three times.
BATCH_ROWS_MAX = 4096
BATCH_BYTES_MAX = 8 << 20

_PUBLISH = (
    "select pillarbox.publish(%s::text, %s::json, %s::timestamptz, %s::text, %s::bigint, "
    "%s::uuid, %s::text)"
)
_PUBLISH_BATCH = (
    "select count(*) from pillarbox.publish_batch(%s::text[], %s::json[], %s::timestamptz[], "
    "%s::text[], %s::bigint[], %s::uuid[], %s::text[])"
)


@dataclasses.dataclass(frozen=True, repr=False)
class Statement:
    """SQL with ``%s`` for each parameter."""

    sql: str
    parameters: tuple[Any, ...]


def statements(events: Sequence[RawEvent]) -> Iterator[Statement]:
    """What publishes the events, in their order."""
    waiting: list[RawEvent] = []
    waiting_bytes = 0
    for event in events:
        size = len(event.event_context)
        is_full = len(waiting) == BATCH_ROWS_MAX or waiting_bytes + size > BATCH_BYTES_MAX
        if waiting and (is_full or event.columns):
            yield _of_many(waiting)
            waiting, waiting_bytes = [], 0
        if event.columns:
            yield _with_columns(event)
        else:
            waiting.append(event)
            waiting_bytes += size
    if waiting:
        yield _of_many(waiting)


def _of_many(events: Sequence[RawEvent]) -> Statement:
    if len(events) == 1:
        return Statement(_PUBLISH, _parameters(events[0]))
    columns = zip(*(_parameters(event) for event in events))
    return Statement(_PUBLISH_BATCH, tuple(list(column) for column in columns))


def _parameters(event: RawEvent) -> tuple[Any, ...]:
    return (
        event.event_type,
        event.event_context,
        _time(event.event_date_time),
        event.environment,
        event.metadata_version,
        str(event.event_id),
        event.trace_parent,
    )


def _with_columns(event: RawEvent) -> Statement:
    """A plain INSERT, which is an equal citizen. What is not given takes the column's default."""
    given: dict[str, tuple[str, Any]] = {
        "event_type": ("text", event.event_type),
        "event_context": ("json", event.event_context),
        "event_date_time": ("timestamptz", _time(event.event_date_time)),
        "environment": ("text", event.environment),
        "metadata_version": ("bigint", event.metadata_version),
        "event_id": ("uuid", str(event.event_id)),
        "trace_parent": ("text", event.trace_parent),
    }
    given = {name: value for name, value in given.items() if value[1] is not None}
    names = [*given, *event.columns]
    places = [f"%s::{kind}" for kind, _ in given.values()] + ["%s"] * len(event.columns)
    columns = ", ".join(_quoted(name) for name in names)
    values = ", ".join(places)
    sql = f"insert into pillarbox.event ({columns}) values ({values}) returning event_id"  # noqa: S608
    return Statement(sql, (*(value for _, value in given.values()), *event.columns.values()))


def _quoted(name: str) -> str:
    # %% because drivers look for parameters inside of identifiers, too.
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


def _time(time: datetime.datetime | None) -> str | None:
    return None if time is None else time.isoformat()
