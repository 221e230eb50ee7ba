"""Connections of psycopg 3, psycopg 2 and Django: is a transaction open, and run a statement in it.

Drivers are recognised without importing them: whoever passes a connection has imported its driver.
"""

from __future__ import annotations

import sys
from typing import Any

from pillarbox.errors import NotInTransaction, PillarboxError, TransactionAborted, of_refusal
from pillarbox.statement import Statement

#: libpq's PQTRANS_…, which psycopg 2 and 3 both report.
_IDLE, _ACTIVE, _INERROR = 0, 1, 3

_ABORTED = "the transaction is aborted: an earlier statement failed; roll it back and repeat it"


class Psycopg:
    """A connection of psycopg 3."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def check_transaction(self) -> None:
        """Refuses where the event would be committed by itself, or never."""
        if self._is_piped():
            # The state of the transaction is known when what was queued has been answered.
            self.connection.execute("select").fetchall()
        _check(self.connection.info.transaction_status, self.connection.autocommit)

    def run(self, statement: Statement) -> None:
        """Runs it. The cursor is not the connection's own kind: values travel beside the text."""
        psycopg = sys.modules["psycopg"]
        try:
            with psycopg.Cursor(self.connection) as cursor:
                # Never a named statement: a pooler in transaction mode may not know it again.
                cursor.execute(statement.sql, statement.parameters, prepare=False)
                # Also in a pipeline a refusal is ours to name: wait for the answer.
                cursor.fetchall()
            return
        except psycopg.Error as error:
            refusal = _refusal(error, error.sqlstate)
            if refusal is None:
                raise
        # Outside of the handler: the driver's error holds the event.
        raise refusal

    def _is_piped(self) -> bool:
        return bool(self.connection.info.pipeline_status)


class AsyncPsycopg:
    """An asynchronous connection of psycopg 3."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def check_transaction(self) -> None:
        """As :meth:`Psycopg.check_transaction`."""
        if self.connection.info.pipeline_status:
            cursor = await self.connection.execute("select")
            await cursor.fetchall()
        _check(self.connection.info.transaction_status, self.connection.autocommit)

    async def run(self, statement: Statement) -> None:
        """As :meth:`Psycopg.run`."""
        psycopg = sys.modules["psycopg"]
        try:
            async with psycopg.AsyncCursor(self.connection) as cursor:
                await cursor.execute(statement.sql, statement.parameters, prepare=False)
                await cursor.fetchall()
            return
        except psycopg.Error as error:
            refusal = _refusal(error, error.sqlstate)
            if refusal is None:
                raise
        raise refusal


class Psycopg2:
    """A connection of psycopg 2."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def check_transaction(self) -> None:
        """Refuses where the event would be committed by itself, or never."""
        _check(self.connection.get_transaction_status(), self.connection.autocommit)

    def run(self, statement: Statement) -> None:
        """Runs it."""
        psycopg2 = sys.modules["psycopg2"]
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(statement.sql, statement.parameters)
            return
        except psycopg2.Error as error:
            refusal = _refusal(error, error.pgcode)
            if refusal is None:
                raise
        # Outside of the handler: the driver's error holds the event.
        raise refusal


class Django:
    """A database of Django, in ``transaction.atomic()``."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def check_transaction(self) -> None:
        """Refuses outside of ``atomic()``. The transaction of a ``TestCase`` does not count: it is
        not there in production, unless each request has one."""
        wrapper = self.connection
        if wrapper.vendor != "postgresql":
            raise PillarboxError(
                f"the database {wrapper.alias!r} is {wrapper.vendor}; the outbox needs postgresql"
            )
        if wrapper.in_atomic_block:
            blocks = getattr(wrapper, "atomic_blocks", ())
            of_tests = [block for block in blocks if getattr(block, "_from_testcase", False)]
            has_one_each = wrapper.settings_dict.get("ATOMIC_REQUESTS", False)
            if blocks and len(of_tests) == len(blocks) and not has_one_each:
                raise NotInTransaction(
                    "publish inside transaction.atomic(); "
                    "the transaction that a TestCase opens is not there in production"
                )
        elif wrapper.get_autocommit():
            raise NotInTransaction(
                f"publish inside transaction.atomic(using={wrapper.alias!r}): "
                "the event must commit with the business step"
            )
        if wrapper.needs_rollback:
            raise TransactionAborted(_ABORTED)
        wrapper.ensure_connection()
        self._driver().check_transaction()

    def run(self, statement: Statement) -> None:
        """Runs it on the driver's connection: Django's own cursors write parameters to the log
        ``django.db.backends`` when DEBUG is on."""
        from django.db.transaction import mark_for_rollback_on_error

        self.connection.validate_thread_sharing()
        with (
            mark_for_rollback_on_error(self.connection.alias),
            self.connection.wrap_database_errors,
        ):
            self._driver().run(statement)

    def _driver(self) -> Any:
        driver = of_driver(self.connection.connection)
        if driver is None:
            raise PillarboxError(
                f"the database {self.connection.alias!r} is not reached by psycopg or psycopg2"
            )
        return driver


def of_driver(connection: object) -> Any | None:
    """What speaks to a connection of a driver; ``None``: it is none."""
    psycopg, psycopg2 = sys.modules.get("psycopg"), sys.modules.get("psycopg2.extensions")
    if psycopg is not None and isinstance(connection, psycopg.Connection):
        return Psycopg(connection)
    if psycopg2 is not None and isinstance(connection, psycopg2.connection):
        return Psycopg2(connection)
    return None


def of(connection: object) -> Any | None:
    """What speaks to a connection; ``None``: it is no connection that this package knows."""
    if "django.db" in sys.modules and hasattr(connection, "in_atomic_block"):
        return Django(connection)
    return of_driver(connection)


def of_async(connection: object) -> AsyncPsycopg | None:
    """What speaks to an asynchronous connection."""
    psycopg = sys.modules.get("psycopg")
    if psycopg is not None and isinstance(connection, psycopg.AsyncConnection):
        return AsyncPsycopg(connection)
    return None


def unknown(connection: object) -> TypeError:
    """The error for what is no connection."""
    kind = type(connection)
    return TypeError(
        f"cannot publish on {kind.__module__}.{kind.__qualname__}; pass a connection of psycopg, "
        "psycopg2 or django, or a pillarbox.Recorder"
    )


def _check(status: int, autocommit: bool) -> None:
    if status == _INERROR:
        raise TransactionAborted(_ABORTED)
    if status == _IDLE and autocommit:
        raise NotInTransaction(
            "the connection is in autocommit and no transaction is open; publish inside "
            "`with connection.transaction():`, or switch autocommit off"
        )
    if status == _ACTIVE:
        raise NotInTransaction(
            "another statement runs on the connection; publish when it has ended"
        )


def _refusal(error: Any, sqlstate: str | None) -> PillarboxError | None:
    if sqlstate is None:
        return None
    return of_refusal(sqlstate, error.diag.message_primary or "")
