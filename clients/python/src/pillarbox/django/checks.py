"""What `manage.py pillarbox_check` looks at. Nothing here changes anything."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from django.db import Error, OperationalError, transaction

from pillarbox import driver, schema
from pillarbox.django import conf, installation
from pillarbox.errors import MissingRights, PillarboxError
from pillarbox.event import RawEvent
from pillarbox.statement import statements

_RIGHTS = """
    select needed.what
    from (values
        ('usage on the schema pillarbox', pg_catalog.has_schema_privilege('pillarbox', 'usage')),
        ('insert on pillarbox.event',
            pg_catalog.has_column_privilege('pillarbox.event', 'event_context', 'insert')),
        ('select (event_id) on pillarbox.event',
            pg_catalog.has_column_privilege('pillarbox.event', 'event_id', 'select')),
        ('execute on pillarbox.publish', (
            select pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'execute'))
            from pg_catalog.pg_proc p
            join pg_catalog.pg_namespace n on n.oid = p.pronamespace
            where n.nspname = 'pillarbox' and p.proname in ('publish', 'publish_batch')
        ))
    ) needed (what, held)
    where needed.held is not true"""

_GRANT = (
    "run `pillarbox grant USER --as publisher`, or name the user in PILLARBOX['PUBLISHERS'] and \
migrate"
)


class Level(enum.Enum):
    """As of `pillarbox doctor`."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check came to."""

    level: Level
    check: str
    message: str
    remedy: str = ""
    #: The server did not answer: trying again may help.
    is_away: bool = False

    def as_json(self) -> dict[str, str]:
        """For scripts."""
        return {
            "level": self.level.value,
            "check": self.check,
            "message": self.message,
            "remedy": self.remedy,
        }


def look(connection: Any) -> list[Finding]:
    """All checks, as far as they can be made."""
    if connection.vendor != "postgresql":
        message = f"the database {connection.alias!r} is {connection.vendor}, not postgresql"
        return [Finding(Level.PROBLEM, "server", message, "name another one with --database")]
    try:
        connection.ensure_connection()
    except OperationalError as error:
        # The first line names host and port; it holds no password.
        message = str(error).strip().splitlines()[0]
        remedy = "start the server, or correct DATABASES"
        return [Finding(Level.PROBLEM, "server", message, remedy, is_away=True)]
    findings = [_server(connection), _pooler(connection)]
    found = _schema(connection)
    findings.append(found)
    if found.level is Level.PROBLEM:
        return findings
    rights = _rights(connection)
    findings.append(rights)
    if rights.level is not Level.PROBLEM:
        findings += [_limit(connection), _publish(connection)]
    return findings


def _server(connection: Any) -> Finding:
    row = _row(
        connection,
        "select pg_catalog.current_setting('server_version'), current_user, "
        "pg_catalog.current_database(), pg_catalog.pg_is_in_recovery(), "
        "pg_catalog.current_setting('server_encoding')",
    )
    version, user, database, is_standby, encoding = row
    if is_standby:
        message = "the server is a standby, which takes no writes"
        return Finding(Level.PROBLEM, "server", message, "connect to the primary")
    if encoding != "UTF8":
        message = f"the encoding of the database is {encoding}"
        return Finding(Level.PROBLEM, "server", message, "make a database with encoding UTF8")
    message = f"postgresql {version}, database {database}, user {user}"
    return Finding(Level.OK, "server", message)


def _pooler(connection: Any) -> Finding:
    """A pooler makes up what it tells clients about their server process."""
    raw = connection.connection
    told = raw.info.backend_pid
    if _row(connection, "select pg_catalog.pg_backend_pid()")[0] == told:
        return Finding(Level.OK, "pooler", "the server is reached directly")
    message = (
        "the server is reached through a pooler, which is well for publishing; the relay needs \
the server itself"
    )
    return Finding(Level.OK, "pooler", message)


def _schema(connection: Any) -> Finding:
    known = schema.version()
    try:
        installed = installation.installed_version(connection)
    except MissingRights:
        message = "the schema pillarbox is there; this user may not read its version"
        return Finding(Level.SKIPPED, "schema", message)
    if installed is None:
        message = "the schema pillarbox is not installed in this database"
        return Finding(Level.PROBLEM, "schema", message, "run `manage.py migrate pillarbox`")
    if installed < known:
        message = f"the schema pillarbox has version {installed}, this package knows {known}"
        return Finding(Level.WARNING, "schema", message, "run `manage.py migrate pillarbox`")
    return Finding(Level.OK, "schema", f"the schema pillarbox has version {installed}")


def _rights(connection: Any) -> Finding:
    try:
        with transaction.atomic(connection.alias), connection.cursor() as cursor:
            cursor.execute(_RIGHTS)
            missing = [what for (what,) in cursor.fetchall()]
    except Error:
        # Without usage on the schema, the names in it cannot be asked about.
        missing = ["usage on the schema pillarbox"]
    if missing:
        message = f"this user lacks {', '.join(missing)}"
        return Finding(Level.PROBLEM, "rights", message, _GRANT)
    return Finding(Level.OK, "rights", "this user may publish")


def _limit(connection: Any) -> Finding:
    of_database, environment = _row(
        connection, "select pillarbox.event_bytes_max(), pillarbox.environment_default()"
    )
    publisher = conf.publisher()
    of_application = publisher.event_bytes_max
    shown = f"environment {publisher.environment or environment!r}"
    if of_database < of_application:
        message = (
            f"contexts between {of_database} and {of_application} bytes pass the application and "
            "abort the transaction"
        )
        remedy = f"set PILLARBOX['EVENT_BYTES_MAX'] to {of_database}, or raise the limit of the \
database with `pillarbox settings --event-bytes-max`"
        return Finding(Level.WARNING, "limit", message, remedy)
    if of_database > of_application:
        message = (
            f"the application refuses contexts above {of_application} bytes, the database takes \
{of_database}"
        )
        remedy = f"set PILLARBOX['EVENT_BYTES_MAX'] to {of_database}, or leave it so"
        return Finding(Level.OK, "limit", message, remedy)
    return Finding(Level.OK, "limit", f"contexts may have {of_database} bytes; {shown}")


def _publish(connection: Any) -> Finding:
    """Not by the publisher: nothing is published, so neither log nor recorder is told."""
    event = RawEvent("pillarbox_check", "{}")
    spoken = driver.Django(connection)
    try:
        with transaction.atomic(connection.alias):
            spoken.check_transaction()
            for statement in statements([event]):
                spoken.run(statement)
            transaction.set_rollback(True, connection.alias)
    except PillarboxError as error:
        return Finding(Level.PROBLEM, "publish", str(error))
    except Error as error:
        # Of the probe: it quotes nothing of the application.
        message = f"publishing in a transaction failed: {str(error).strip().splitlines()[0]}"
        remedy = "a pooler in statement mode has no transactions: use transaction mode"
        return Finding(Level.PROBLEM, "publish", message, remedy)
    return Finding(Level.OK, "publish", "an event was published and rolled back")


def _row(connection: Any, sql: str) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        row: tuple[Any, ...] = cursor.fetchone()
    return row
