"""Publish events inside your own PostgreSQL transaction.

An event written from a request to a second system is lost when the process dies between the two
writes, and lies when the first one rolls back. :func:`publish` writes it into the transaction that
does the business step instead: **the event is delivered if and only if that transaction commits.**
The Pillarbox relay takes it from there::

    class UserCreated(pydantic.BaseModel):
        email: str

    with connection.transaction():
        connection.execute("insert into users (email) values (%s)", [email])
        event_id = pillarbox.publish(connection, UserCreated(email=email))

Not promised: anything before the commit; when it arrives; a retry (a failed statement has aborted
the transaction); that two calls with the same ``event_id`` become one event.
"""

from pillarbox.errors import (
    InvalidEvent,
    InvalidField,
    InvalidType,
    MissingRights,
    NotInTransaction,
    NotJson,
    OutboxMissing,
    PillarboxError,
    ReadOnly,
    TooLarge,
    TransactionAborted,
)
from pillarbox.event import RawEvent
from pillarbox.identity import uuid7
from pillarbox.publisher import (
    EVENT_BYTES_MAX_DEFAULT,
    Publisher,
    apublish,
    apublish_all,
    publish,
    publish_all,
)
from pillarbox.recorder import Recorder, recording

__all__ = [
    "EVENT_BYTES_MAX_DEFAULT",
    "InvalidEvent",
    "InvalidField",
    "InvalidType",
    "MissingRights",
    "NotInTransaction",
    "NotJson",
    "OutboxMissing",
    "PillarboxError",
    "Publisher",
    "RawEvent",
    "ReadOnly",
    "Recorder",
    "TooLarge",
    "TransactionAborted",
    "apublish",
    "apublish_all",
    "publish",
    "publish_all",
    "recording",
    "uuid7",
]
