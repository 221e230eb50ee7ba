"""The outbox of unit tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pillarbox import context
from pillarbox.event import RawEvent, type_of

#: What listens to every publish, of any thread.
_listening: list[Recorder] = []


class Recorder:
    """Records published events in memory.

    Passed in place of a connection it is the outbox, for tests without a database. As
    :func:`recording` (or the fixture ``published_events``) it also sees what is published on real
    connections. The same checks run, so that an event which is too large fails the test as well.

    Events of a Django transaction that was rolled back are not shown; those of other connections
    are: take them out by :meth:`take`.
    """

    def __init__(self, *, has_database: bool = True) -> None:
        #: Without a database, ``pillarbox.django.publish`` only records.
        self.has_database = has_database
        self._events: list[tuple[RawEvent, Callable[[], bool]]] = []

    @property
    def events(self) -> list[RawEvent]:
        """All events, in the order of publishing, with what the publisher added to them."""
        return [event for event, is_kept in self._events if is_kept()]

    def of(self, kind: type) -> list[Any]:
        """The events of one class, read back, in the order of publishing."""
        wanted = type_of(kind)
        contexts = [event.event_context for event in self.events if event.event_type == wanted]
        return [_read(kind, text) for text in contexts]

    def assert_published(self, event: object) -> None:
        """Asserts that exactly one event of this type and context was published."""
        wanted = RawEvent.from_event(event)
        equal = [
            found
            for found in self.events
            if (found.event_type, found.event_context) == (wanted.event_type, wanted.event_context)
        ]
        if len(equal) != 1:
            raise AssertionError(
                f"expected one event {wanted.event_type!r} {wanted.event_context}, "
                f"found {len(equal)} in:\n{self._list()}"
            )

    def assert_nothing_published(self) -> None:
        """Asserts that no event was published."""
        if self.events:
            raise AssertionError(f"expected no event, found:\n{self._list()}")

    def take(self) -> list[RawEvent]:
        """Takes the events out, for a test in several steps, or to model a rollback."""
        events = self.events
        self._events.clear()
        return events

    def record(self, events: Sequence[RawEvent], is_kept: Callable[[], bool] | None) -> None:
        """Takes note of what was published."""
        self._events.extend((event, is_kept or _always) for event in events)

    def __iter__(self) -> Iterator[RawEvent]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def __bool__(self) -> bool:
        return True

    def _list(self) -> str:
        lines = [f"  {event.event_type!r} {event.event_context}" for event in self.events]
        return "\n".join(lines) or "  (none)"


@contextmanager
def recording(*, has_database: bool = True) -> Iterator[Recorder]:
    """Records everything that is published inside, on any connection and in any thread."""
    recorder = Recorder(has_database=has_database)
    _listening.append(recorder)
    try:
        yield recorder
    finally:
        _listening.remove(recorder)


def listening() -> list[Recorder]:
    """Who records at this moment."""
    return list(_listening)


def _always() -> bool:
    return True


def _read(kind: Any, text: str) -> Any:
    if hasattr(kind, "model_validate_json"):
        return kind.model_validate_json(text)
    return _Fields(kind, json.loads(text))


class _Fields:
    """A dataclass read back: equal to an instance whose context has the same value."""

    def __init__(self, kind: type, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)
        self._kind = kind

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, self._kind):
            return NotImplemented
        mine = {name: value for name, value in vars(self).items() if name != "_kind"}
        return bool(mine == context.plain(type_of(self._kind), other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if k != "_kind")
        return f"{self._kind.__name__}({fields})"
