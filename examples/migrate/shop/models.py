"""The business table, and the tables in which events wait."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.db import models


class User(models.Model):
    """A user."""

    email = models.TextField(unique=True)

    class Meta:
        """Its name."""

        db_table = "users"


class EventOutbox(models.Model):
    """An event that a Celery task ships."""

    event_id = models.UUIDField(default=uuid.uuid4, unique=True)
    event_type = models.TextField()
    event_date_time = models.DateTimeField(auto_now_add=True)
    environment = models.TextField(default="production")
    event_context: models.JSONField[Any, Any] = models.JSONField()
    metadata_version = models.BigIntegerField(default=1)
    sent = models.BooleanField(default=False)

    class Meta:
        """Its name, and the index by which the task finds what waits."""

        db_table = "event_outbox"
        indexes: ClassVar = [
            models.Index(fields=["id"], name="event_outbox_unsent", condition=models.Q(sent=False))
        ]


class OutboxUser(models.Model):
    """A user was created."""

    user = models.ForeignKey(User, on_delete=models.CASCADE)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """Its name."""

        db_table = "outbox_user"


class OutboxLogin(models.Model):
    """A user logged in."""

    user = models.ForeignKey(User, on_delete=models.CASCADE)
    address = models.GenericIPAddressField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """Its name."""

        db_table = "outbox_login"
