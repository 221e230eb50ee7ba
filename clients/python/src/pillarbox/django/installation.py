"""Installs, upgrades and drops the schema on a connection of Django, in an open transaction."""

from __future__ import annotations

from typing import Any

from django.db import DatabaseError, connections, router, transaction
from django.db.migrations.loader import MigrationLoader

from pillarbox import schema
from pillarbox.django import conf
from pillarbox.errors import MissingRights, OutboxMissing, PillarboxError

#: As of the program: the advisory lock under which the schema is installed, 'PBOX' and -1.
_LOCK = "select pg_catalog.pg_advisory_xact_lock(1346522968, -1)"

#: Whether the schema is there, and whether its version may be read. By the catalogs: without rights
#: on the schema its names cannot be used.
_FIND = """
    select pg_catalog.has_schema_privilege(n.oid, 'usage')
        and pg_catalog.has_table_privilege(c.oid, 'select')
    from pg_catalog.pg_namespace n
    join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = 'schema_version'
    where n.nspname = 'pillarbox'"""

#: Installing in several databases of a cluster at once collides in catalogs that they share, with
#: XX000 ("tuple concurrently updated") among others.
_COLLISIONS = ("XX000", "23505", "40P01")
_ATTEMPTS_MAX = 10


def installed_version(connection: Any) -> int | None:
    """The installed version; ``None``: there is none.

    Raises :class:`MissingRights` where it may not be read.
    """
    with connection.cursor() as cursor:
        cursor.execute(_FIND)
        row = cursor.fetchone()
        if row is None:
            return None
        if not row[0]:
            raise MissingRights(
                "the schema pillarbox is there, but its version may not be read; "
                "run `pillarbox grant USER --as reader` for the user that migrates"
            )
        cursor.execute("select max(version) from pillarbox.schema_version")
        found = cursor.fetchone()
    return None if found is None else found[0]


def migrate(connection: Any, version: int) -> None:
    """Leads to ``version`` or a newer one, inside of the open transaction. Does nothing where that
    is installed already, by whomever. Safe when run by many at once."""
    _look_again_at_each_statement(connection)
    with connection.cursor() as cursor:
        cursor.execute(_LOCK)
    installed = installed_version(connection) or 0
    if installed >= version:
        return
    for attempt in range(_ATTEMPTS_MAX):
        try:
            with transaction.atomic(connection.alias), connection.cursor() as cursor:
                cursor.execute(schema.statements(installed))
            return
        except DatabaseError as error:
            if _sqlstate(error) not in _COLLISIONS or attempt + 1 == _ATTEMPTS_MAX:
                raise _explained(error) from error


def drop(connection: Any) -> None:
    """Drops the schema, inside of the open transaction, when every event is delivered."""
    _look_again_at_each_statement(connection)
    installed = installed_version(connection)
    if installed is None:
        return
    if installed > schema.version():
        raise PillarboxError(
            f"the schema pillarbox has version {installed}, this package knows "
            f"{schema.version()}; drop it with `pillarbox uninstall`"
        )
    with connection.cursor() as cursor:
        try:
            # Nobody publishes between the count and the drop.
            cursor.execute(schema.read("lock_outbox"))
        except DatabaseError as error:
            if _sqlstate(error) != "55P03":
                raise
            raise PillarboxError(
                "the outbox is in use by an open transaction; stop publishers and relays, "
                "then try again"
            ) from error
        _check_delivered(cursor)
        cursor.execute(schema.read("uninstall"))


def finish(using: str, app_label: str) -> None:
    """After ``migrate``: lets the configured users publish; installs the schema itself where
    migrations are switched off, as test runners do."""
    connection = connections[using]
    if connection.vendor != "postgresql" or not router.allow_migrate(using, app_label):
        return
    if MigrationLoader.migrations_module(app_label)[0] is None:
        with transaction.atomic(using):
            migrate(connection, schema.version())
    users = conf.publishers()
    with connection.cursor() as cursor:
        cursor.execute(_FIND)
        if cursor.fetchone() is None:
            return
        for user in users:
            _grant(cursor, user)


def _check_delivered(cursor: Any) -> None:
    count_max = 1_000_000
    cursor.execute(schema.read("undelivered"), [count_max])
    sinks = cursor.fetchall()
    remedy = "deliver them with `pillarbox relay --once`, or lose them with `pillarbox uninstall`"
    behind = [f"{events} of sink {sink}" for sink, events in sinks if events]
    if behind:
        raise PillarboxError(f"events are not delivered yet: {', '.join(behind)}; {remedy}")
    if not sinks:
        cursor.execute(schema.read("outbox_events"), [count_max])
        events = cursor.fetchone()[0]
        if events:
            raise PillarboxError(
                f"the outbox holds {events} events and no sink is registered that could receive "
                f"them; register one with `pillarbox sink create`, then {remedy}"
            )


def _grant(cursor: Any, user: str) -> None:
    cursor.execute(
        "select pg_catalog.pg_has_role(r.oid, 'pillarbox_publisher', 'member') "
        "from pg_catalog.pg_roles r where r.rolname = %s",
        [user],
    )
    row = cursor.fetchone()
    if row is None:
        raise PillarboxError(
            f"postgresql has no user {user!r}, which PILLARBOX['PUBLISHERS'] names; create it first"
        )
    if row[0]:
        return
    try:
        cursor.execute(f"grant pillarbox_publisher to {cursor.db.ops.quote_name(user)}")
    except DatabaseError as error:
        if _sqlstate(error) != "42501":
            raise
        raise MissingRights(
            f"this user may not let {user!r} publish; "
            f"an administrator can run `pillarbox grant {user} --as publisher`"
        ) from error


def _look_again_at_each_statement(connection: Any) -> None:
    """What another session installed while we waited for the lock must be visible. Only possible
    before the first query of a transaction: our migrations consist of one operation."""
    with connection.cursor() as cursor:
        cursor.execute("show transaction_isolation")
        if cursor.fetchone()[0] != "read committed":
            cursor.execute("set transaction isolation level read committed")


def _explained(error: DatabaseError) -> Exception:
    sqlstate = _sqlstate(error)
    if sqlstate == "42501":
        return MissingRights(
            "installing the schema pillarbox needs CREATE on the database and, once per cluster, "
            "CREATEROLE; an administrator can run `pillarbox migrate` or what "
            "`manage.py sqlmigrate pillarbox 0001` prints; then migrate again",
            sqlstate=sqlstate,
        )
    if sqlstate == "55P03":
        return OutboxMissing(
            "a table of the schema pillarbox is in use for long; look into pg_stat_activity for "
            "old transactions, then migrate again",
            sqlstate=sqlstate,
        )
    return error


def _sqlstate(error: DatabaseError) -> str | None:
    cause = error.__cause__
    found = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return found if isinstance(found, str) else None
