"""The operation of our migrations."""

from __future__ import annotations

from typing import Any

from django.db import router
from django.db.migrations.operations.base import Operation

from pillarbox import schema
from pillarbox.django import installation


class MigrateSchema(Operation):
    """Leads the schema to a version. Does nothing on other databases than PostgreSQL, where the
    version or a newer one is installed, and where a router forbids it."""

    reduces_to_sql = True
    reversible = True

    def __init__(self, version: int, *, drops: bool = False) -> None:
        self.version = version
        #: Whether its reverse drops the schema. There is no way back to an older version.
        self.drops = drops

    def state_forwards(self, app_label: str, state: Any) -> None:
        """No model changes."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Installs or upgrades."""
        if not _concerns(app_label, schema_editor):
            return
        if schema_editor.collect_sql:
            schema_editor.collected_sql.append(
                schema.statements(self.version - 1 if not self.drops else 0)
            )
            return
        installation.migrate(schema_editor.connection, self.version)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Drops the schema when everything is delivered, or does nothing."""
        if not self.drops or not _concerns(app_label, schema_editor):
            return
        if schema_editor.collect_sql:
            schema_editor.collected_sql.append(schema.read("uninstall"))
            return
        installation.drop(schema_editor.connection)

    def describe(self) -> str:
        """For ``migrate --plan``."""
        return f"Install or upgrade the schema pillarbox to version {self.version}"


def _concerns(app_label: str, schema_editor: Any) -> bool:
    connection = schema_editor.connection
    return connection.vendor == "postgresql" and router.allow_migrate(connection.alias, app_label)
