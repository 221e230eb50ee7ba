"""The configuration: the environment, nothing else."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured


def variable(name: str, default: str = "") -> str:
    """A variable; an empty one counts as unset."""
    return os.environ.get(name) or default


def rate(name: str) -> float:
    """A share from 0 to 1; 0 unless set."""
    text = variable(name, "0")
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0.0 <= found <= 1.0:
        raise ImproperlyConfigured(f"{name} is {text!r}; use a number from 0 to 1")
    return found


def seconds(name: str, default: str) -> float:
    """A time above 0."""
    text = variable(name, default)
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if found <= 0.0:
        raise ImproperlyConfigured(f"{name} is {text!r}; use a number of seconds above 0")
    return found


def choice(name: str, allowed: tuple[str, ...]) -> str:
    """One of a few words; the first unless set."""
    text = variable(name, allowed[0])
    if text not in allowed:
        raise ImproperlyConfigured(f"{name} is {text!r}; use {' or '.join(sorted(allowed))}")
    return text


def database(name: str) -> dict[str, Any]:
    """What Django wants to know of a `postgresql://` URL."""
    url = urlsplit(variable(name))
    if url.scheme not in ("postgres", "postgresql") or not url.path.strip("/"):
        raise ImproperlyConfigured(f"{name} is not set; use postgresql://USER@HOST/DATABASE")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(url.path.strip("/")),
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "HOST": url.hostname or "",
        "PORT": str(url.port or ""),
        # Connections stay open between requests; one that has died is noticed before its use.
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }
