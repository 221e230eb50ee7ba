"""First step of an event's way: checked, serialised, and inserted by the caller's transaction."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union

from pillarbox import driver, log, trace
from pillarbox.errors import TooLarge
from pillarbox.event import RawEvent, check_environment
from pillarbox.recorder import Recorder, listening
from pillarbox.statement import statements

#: Bytes of a context allowed unless the publisher says otherwise: the default of the outbox.
EVENT_BYTES_MAX_DEFAULT = 1 << 20

LogContext = Union[bool, Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Publisher:
    """Publishes events with settings that all of them share. Keep one for the process."""

    #: Of events that name none; ``None``: the database's default.
    environment: str | None = None
    #: Raise it together with ``pillarbox settings --event-bytes-max``. Checked before anything is
    #: sent, because a refusal of the database aborts the transaction.
    event_bytes_max: int = EVENT_BYTES_MAX_DEFAULT

    def __post_init__(self) -> None:
        check_environment("any", self.environment)

    def publish(
        self,
        connection: Any,
        event: object,
        *,
        event_id: uuid.UUID | None = None,
        event_date_time: datetime.datetime | None = None,
        environment: str | None = None,
        metadata_version: int | None = None,
        trace_parent: str | None = None,
        columns: Mapping[str, Any] | None = None,
        log_context: LogContext = False,
    ) -> uuid.UUID:
        """Publishes one event in the open transaction of ``connection`` and returns its id.

        The event exists if and only if that transaction commits; the id can be logged before. One
        round trip, no other network work. ``log_context`` adds what is bound to structlog's
        context, all of it or the keys named, under the key ``log_context``.

        Raises :class:`InvalidEvent`, :class:`NotInTransaction`, :class:`TransactionAborted`:
        nothing was sent. Errors with an ``sqlstate``, and those of the driver: roll back.
        """
        fields = _given(
            event_id=event_id,
            event_date_time=event_date_time,
            environment=environment,
            metadata_version=metadata_version,
            trace_parent=trace_parent,
            columns=columns,
        )
        raw = self.prepare([RawEvent.from_event(event, **fields)], log_context)
        send(connection, raw)
        return raw[0].event_id

    def publish_all(
        self, connection: Any, events: Iterable[object], *, log_context: LogContext = False
    ) -> list[uuid.UUID]:
        """Publishes many events in the open transaction and returns their ids, in the order given.

        One round trip for each 4,096 events or 8 MiB of context. All are checked before the first
        is sent. Events with fields of their own: :meth:`RawEvent.from_event`.
        """
        raw = self.prepare([RawEvent.from_event(event) for event in events], log_context)
        send(connection, raw)
        return [event.event_id for event in raw]

    async def apublish(
        self,
        connection: Any,
        event: object,
        *,
        event_id: uuid.UUID | None = None,
        event_date_time: datetime.datetime | None = None,
        environment: str | None = None,
        metadata_version: int | None = None,
        trace_parent: str | None = None,
        columns: Mapping[str, Any] | None = None,
        log_context: LogContext = False,
    ) -> uuid.UUID:
        """As :meth:`publish`, on an asynchronous connection of psycopg 3. After a cancellation the
        event may or may not be part of the transaction: roll back."""
        fields = _given(
            event_id=event_id,
            event_date_time=event_date_time,
            environment=environment,
            metadata_version=metadata_version,
            trace_parent=trace_parent,
            columns=columns,
        )
        raw = self.prepare([RawEvent.from_event(event, **fields)], log_context)
        await asend(connection, raw)
        return raw[0].event_id

    async def apublish_all(
        self, connection: Any, events: Iterable[object], *, log_context: LogContext = False
    ) -> list[uuid.UUID]:
        """As :meth:`publish_all`, on an asynchronous connection of psycopg 3."""
        raw = self.prepare([RawEvent.from_event(event) for event in events], log_context)
        await asend(connection, raw)
        return [event.event_id for event in raw]

    def prepare(self, events: Sequence[RawEvent], log_context: LogContext) -> list[RawEvent]:
        """Adds what is the same for all, and checks all that the outbox would refuse."""
        parent = trace.current_parent()
        bound = {} if log_context is False else log.bound(log_context)
        prepared = []
        for given in events:
            event = given.with_log_context(bound) if bound else given
            added = {
                name: value
                for name, value in (("environment", self.environment), ("trace_parent", parent))
                if value is not None and getattr(event, name) is None
            }
            for name, value in added.items():
                # A copy of its own, without reading the context again.
                if event is given:
                    event = _copy(given)
                object.__setattr__(event, name, value)
            self._check_size(event)
            prepared.append(event)
        return prepared

    def _check_size(self, event: RawEvent) -> None:
        size = len(event.event_context.encode())
        if size > self.event_bytes_max:
            raise TooLarge(
                f"event_context of event type {event.event_type!r} has {size} bytes, more than the "
                f"limit of {self.event_bytes_max}; publish a reference instead of the content, or "
                "raise the limit with `pillarbox settings` and event_bytes_max of the publisher"
            )


def send(connection: Any, events: Sequence[RawEvent]) -> None:
    """Writes prepared events into the open transaction, and tells recorders and the log."""
    if isinstance(connection, Recorder):
        connection.record(events, None)
        return
    spoken = driver.of(connection)
    if spoken is None or (isinstance(spoken, driver.Django) and not _has_database()):
        if not listening():
            raise driver.unknown(connection)
        # A test without a database: business code got a stand-in for its connection.
        tell(events, None)
        return
    spoken.check_transaction()
    for statement in statements(events):
        spoken.run(statement)
    is_kept = None
    if isinstance(spoken, driver.Django) and spoken.connection.in_atomic_block and listening():
        is_kept = _kept_by(spoken.connection)
    tell(events, is_kept)


async def asend(connection: Any, events: Sequence[RawEvent]) -> None:
    """As :func:`send`, on an asynchronous connection."""
    if isinstance(connection, Recorder):
        connection.record(events, None)
        return
    spoken = driver.of_async(connection)
    if spoken is None:
        if not listening() or driver.of(connection) is not None:
            raise driver.unknown(connection)
        tell(events, None)
        return
    await spoken.check_transaction()
    for statement in statements(events):
        await spoken.run(statement)
    tell(events, None)


def tell(events: Sequence[RawEvent], is_kept: Callable[[], bool] | None) -> None:
    """Recorders and the log."""
    for recorder in listening():
        recorder.record(events, is_kept)
    if events:
        log.published(events)


def _has_database() -> bool:
    return all(recorder.has_database for recorder in listening())


def _kept_by(connection: Any) -> Callable[[], bool]:
    """Whether what was written now is still part of the transaction, or committed: Django forgets
    what was to run on commit when it rolls back to a savepoint or altogether."""
    ran: list[bool] = []

    def mark() -> None:
        ran.append(True)

    connection.on_commit(mark)

    def is_kept() -> bool:
        return bool(ran) or any(waiting[1] is mark for waiting in connection.run_on_commit)

    return is_kept


def _copy(event: RawEvent) -> RawEvent:
    copy: RawEvent = object.__new__(RawEvent)
    copy.__dict__.update(event.__dict__)
    return copy


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


_DEFAULT = Publisher()

publish = _DEFAULT.publish
publish_all = _DEFAULT.publish_all
apublish = _DEFAULT.apublish
apublish_all = _DEFAULT.apublish_all
