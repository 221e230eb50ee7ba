"""What is published: a pydantic model, a dataclass, or a :class:`RawEvent` made at run time."""

from __future__ import annotations

import dataclasses
import datetime
import re
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from pillarbox import context
from pillarbox.errors import InvalidEvent, InvalidField, InvalidType, NotJson
from pillarbox.identity import uuid7

#: Characters of an event type, and of a trace parent, as by the outbox.
EVENT_TYPE_CHARS_MAX = 255
TRACE_PARENT_CHARS_MAX = 255
METADATA_VERSION_MAX = 2**63 - 1

#: Where a new word of a class name begins: ``userCreated``, ``HTTPRequest``.
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

#: The columns that have a parameter of their own, or that a publisher cannot set.
_COLUMNS = frozenset(
    (
        "event_id",
        "event_type",
        "event_date_time",
        "environment",
        "event_context",
        "metadata_version",
        "trace_parent",
        "slot",
        "tx",
        "id",
        "published_at",
    )
)


@dataclasses.dataclass(frozen=True, repr=False)
class RawEvent:
    """An event ready to be published: its type and its context as JSON text.

    The context is kept byte for byte: spaces, order of keys and number formats stay. Also the way
    to give events of one ``publish_all`` identities, times or versions of their own.

    Raises :class:`InvalidEvent` where a field cannot be stored.
    """

    event_type: str
    event_context: str
    event_id: uuid.UUID = dataclasses.field(default_factory=uuid7)
    #: When it happened, with a time zone. ``None``: when the row is written.
    event_date_time: datetime.datetime | None = None
    #: ``None``: the publisher's, else the database's.
    environment: str | None = None
    metadata_version: int = 1
    #: A W3C ``traceparent``. ``None``: the current span's.
    trace_parent: str | None = None
    #: Columns that were added to the outbox, by name. Written by INSERT: needs the right to.
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_type(self.event_type)
        context.check_json(self.event_type, self.event_context)
        self._check_fields()

    @classmethod
    def from_event(cls, event: object, **fields: Any) -> RawEvent:
        """Serialises a typed event; ``fields`` are those of :class:`RawEvent`."""
        if isinstance(event, RawEvent):
            return dataclasses.replace(event, **fields) if fields else event
        event_type = type_of(type(event))
        _check_type(event_type)
        if "metadata_version" not in _fields_of(type(event)):
            fields.setdefault("metadata_version", getattr(type(event), "metadata_version", 1))
        return cls.from_object(event_type, event, **fields)

    @classmethod
    def from_object(cls, event_type: str, value: object, **fields: Any) -> RawEvent:
        """Serialises a mapping, or anything else that an event may hold."""
        _check_type(event_type)
        return cls._of_json(event_type, context.encode(event_type, value), fields)

    @classmethod
    def _of_json(cls, event_type: str, event_context: str, fields: dict[str, Any]) -> RawEvent:
        """Without reading again what was just written: ``null`` stands in for the checks."""
        event = cls(event_type, "null", **fields)
        object.__setattr__(event, "event_context", event_context)
        return event

    def with_log_context(self, bound: Mapping[str, Any]) -> RawEvent:
        """With ``bound`` under the key ``log_context``. The context must be a JSON object."""
        text = self.event_context
        if not (text.startswith("{") and text.endswith("}")):
            reason = "it is not an object, log_context has no place in it"
            raise NotJson(f"event_context of event type {self.event_type!r}: {reason}")
        if '"log_context":' in text:
            reason = "it has the key log_context already; rename it"
            raise NotJson(f"event_context of event type {self.event_type!r}: {reason}")
        separator = "" if text[1:-1].strip() == "" else ","
        added = context.encode(self.event_type, {"log_context": bound})
        with_bound = f"{text[:-1]}{separator}{added[1:]}"
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("event_type", "event_context")
        }
        return self._of_json(self.event_type, with_bound, fields)

    def __repr__(self) -> str:
        """Without the context, which must not reach a log."""
        return (
            f"RawEvent(event_type={self.event_type!r}, event_id={self.event_id}, "
            f"event_context=<{len(self.event_context.encode())} bytes>)"
        )

    def _check_fields(self) -> None:
        if not isinstance(self.event_id, uuid.UUID):
            raise self._invalid("event_id", "pass a uuid.UUID")
        time = self.event_date_time
        if time is not None and (
            not isinstance(time, datetime.datetime) or time.utcoffset() is None
        ):
            raise self._invalid("event_date_time", "pass a datetime with a time zone")
        version = self.metadata_version
        if not isinstance(version, int) or not 0 <= version <= METADATA_VERSION_MAX:
            raise self._invalid("metadata_version", "pass a number from 0 to 9223372036854775807")
        check_environment(self.event_type, self.environment)
        parent = self.trace_parent
        if parent is not None and len(parent) > TRACE_PARENT_CHARS_MAX:
            reason = "it has more than 255 characters; use the W3C traceparent"
            raise self._invalid("trace_parent", reason)
        for name, text in (("trace_parent", parent), ("environment", self.environment)):
            if text is not None and "\0" in text:
                raise self._invalid(name, "it contains NUL; remove it")
        for name in self.columns:
            if name in _COLUMNS or not name or "\0" in name:
                raise self._invalid("columns", f"{name!r} is none that was added to the outbox")

    def _invalid(self, field: str, reason: str) -> InvalidEvent:
        return InvalidField(f"{field} of event type {self.event_type!r} is not valid: {reason}")


def check_environment(event_type: str, environment: str | None) -> None:
    """Refuses an empty environment: readers filter on it."""
    if environment is not None and (not isinstance(environment, str) or not environment):
        reason = "pass text that is not empty, or None for the default"
        raise InvalidField(f"environment of event type {event_type!r} is not valid: {reason}")


def type_of(kind: type) -> str:
    """The event type of a class: its ``event_type``, else ``user_created`` for ``UserCreated``."""
    if not _is_event(kind):
        raise InvalidType(
            f"{kind.__name__} is not an event; publish a pydantic model, a dataclass "
            "or a pillarbox.RawEvent"
        )
    if "event_type" in _fields_of(kind):
        raise InvalidType(
            f"the field event_type of {kind.__name__} is data of one event; "
            "declare it as event_type: ClassVar[str], or rename the field"
        )
    chosen = getattr(kind, "event_type", None)
    if chosen is None:
        return _WORD.sub("_", kind.__name__).lower()
    if not isinstance(chosen, str):
        raise InvalidType(f"event_type of {kind.__name__} is not text; use ClassVar[str]")
    return chosen


def _is_event(kind: type) -> bool:
    pydantic = sys.modules.get("pydantic")
    is_model = pydantic is not None and issubclass(kind, pydantic.BaseModel)
    return is_model or (dataclasses.is_dataclass(kind) and not issubclass(kind, RawEvent))


def _fields_of(kind: type) -> set[str]:
    if dataclasses.is_dataclass(kind):
        return {field.name for field in dataclasses.fields(kind)}
    return set(getattr(kind, "model_fields", ()))


def _check_type(event_type: str) -> None:
    if not isinstance(event_type, str) or not event_type:
        reason = "it is empty" if event_type == "" else "it is not text"
    elif len(event_type) > EVENT_TYPE_CHARS_MAX:
        reason = "it has more than 255 characters"
    elif "\0" in event_type:
        reason = "it contains NUL"
    else:
        return
    message = f"event_type is not valid: {reason}; use 1 to 255 characters without NUL"
    raise InvalidType(message)
