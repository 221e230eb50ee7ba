"""The application ``pillarbox``."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class PillarboxConfig(AppConfig):
    """Installs the schema by migrations, and lets the configured users publish after each."""

    name = "pillarbox.django"
    label = "pillarbox"
    verbose_name = "Pillarbox"

    def ready(self) -> None:
        """Listens for the end of ``migrate``."""
        post_migrate.connect(_migrated, sender=self)


def _migrated(sender: AppConfig, using: str, **_: Any) -> None:
    from pillarbox.django import installation

    installation.finish(using, sender.label)
