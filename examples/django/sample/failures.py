"""Errors as logs and Sentry may show them."""

from __future__ import annotations

from django.db import Error
from pillarbox import PillarboxError

#: Messages of these quote rows: "Key (email)=(…) already exists", "Failing row contains (…)".
_QUOTING = ("psycopg", "django.db")


def may_quote(module: str) -> bool:
    """Whether the messages of errors defined there may hold data."""
    return module.startswith(_QUOTING)


def sqlstate(error: Error) -> str | None:
    """What PostgreSQL answered, by its code."""
    found: str | None = getattr(error.__cause__, "sqlstate", None)
    return found


def describe(error: BaseException) -> str:
    """What happened, without data. Errors of pillarbox never show an event, and name the remedy."""
    if isinstance(error, PillarboxError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, Error):
        return f"{type(error).__name__} (SQLSTATE {sqlstate(error)})"
    return type(error).__name__ if may_quote(type(error).__module__) else repr(error)
