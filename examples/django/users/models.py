"""The business table."""

from __future__ import annotations

from datetime import datetime

from django.db import models


class User(models.Model):
    """A user."""

    email: models.TextField[str, str] = models.TextField(unique=True)
    first_name: models.TextField[str, str] = models.TextField()
    last_name: models.TextField[str, str] = models.TextField()
    created_at: models.DateTimeField[datetime, datetime] = models.DateTimeField(auto_now_add=True)

    class Meta:
        db_table = "users"
