"""The errors of this package. None of them shows the event, and none holds an error that does.

``sqlstate`` is ``None`` where the error was found before anything was sent: the transaction is as
it was. Else the database refused the statement, and the transaction is aborted: roll it back.
"""

from __future__ import annotations


class PillarboxError(Exception):
    """What every error of this package is."""

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class InvalidEvent(PillarboxError, ValueError):
    """The event cannot be stored."""


class TooLarge(InvalidEvent):
    """The context has more bytes than the limit."""


class InvalidType(InvalidEvent):
    """The event type cannot be stored."""


class InvalidField(InvalidEvent):
    """A field beside type and context cannot be stored."""


class NotJson(InvalidEvent):
    """The context is not JSON, or holds what JSON or the outbox has no form for."""


class NotInTransaction(PillarboxError):
    """There is no transaction that the event could belong to."""


class TransactionAborted(PillarboxError):
    """An earlier statement of the transaction failed, so that nothing of it can be committed."""


class OutboxMissing(PillarboxError):
    """The database has no outbox, or one that this package does not know."""


class MissingRights(PillarboxError):
    """The user may not publish."""


class ReadOnly(PillarboxError):
    """The transaction or the server takes no writes."""


#: Texts of ``pillarbox.refuse()``: they name sizes, never content.
_OF_THE_OUTBOX = (
    "event_context has ",
    "event_type has ",
    "event_date_time is ",
    "trace_parent has ",
    "metadata_version is ",
)


def of_refusal(sqlstate: str, message: str) -> PillarboxError | None:
    """The error for what the database answered; ``None``: it says nothing about the event or the
    outbox (a lost connection, a deadlock), and the driver's own error tells more."""
    if sqlstate == "25P02":
        return TransactionAborted(
            "the transaction is aborted: an earlier statement failed; roll it back and repeat it",
            sqlstate=sqlstate,
        )
    if sqlstate == "25006":
        return ReadOnly(
            "the transaction is read-only; publish in a writable transaction on the primary server",
            sqlstate=sqlstate,
        )
    if sqlstate == "42501":
        return MissingRights(
            "the database user may not publish; run `pillarbox grant USER --as publisher`, "
            "with django name the user in PILLARBOX['PUBLISHERS'] and run `manage.py migrate`; "
            "a column that was added without `pillarbox columns add` needs a grant of its own: "
            "`grant insert (COLUMN) on pillarbox.event to pillarbox_publisher`",
            sqlstate=sqlstate,
        )
    if sqlstate == "42703":
        return InvalidField(
            "the outbox does not have a column that `columns` names; "
            "add it with `pillarbox columns add`",
            sqlstate=sqlstate,
        )
    if sqlstate in ("3F000", "42P01", "42883"):
        return OutboxMissing(
            "the outbox is missing or older than this package; run `pillarbox migrate`, "
            "with django `manage.py migrate pillarbox`",
            sqlstate=sqlstate,
        )
    # Errors about data may quote the event, in their detail or context.
    if sqlstate[:2] in ("22", "23"):
        return _of_data(sqlstate, message)
    return None


def _of_data(sqlstate: str, message: str) -> PillarboxError:
    if sqlstate == "23514" and message.startswith(_OF_THE_OUTBOX):
        kind = TooLarge if message.startswith("event_context") else InvalidField
        return kind(message, sqlstate=sqlstate)
    if sqlstate == "22P02" and "json" in message:
        return NotJson("event_context is not JSON; pass one complete JSON value", sqlstate=sqlstate)
    return InvalidField(
        f"the database refused a value of the event (SQLSTATE {sqlstate}); check event_date_time, "
        "and the columns that were added to the outbox",
        sqlstate=sqlstate,
    )
