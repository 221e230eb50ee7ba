"""The setting ``PILLARBOX``."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from pillarbox.publisher import EVENT_BYTES_MAX_DEFAULT, Publisher

_KEYS = ("ENVIRONMENT", "EVENT_BYTES_MAX", "PUBLISHERS")


def publisher() -> Publisher:
    """The publisher as configured."""
    given = _given()
    return Publisher(
        environment=given.get("ENVIRONMENT"),
        event_bytes_max=given.get("EVENT_BYTES_MAX", EVENT_BYTES_MAX_DEFAULT),
    )


def publishers() -> list[str]:
    """The database users that ``migrate`` lets publish."""
    names = _given().get("PUBLISHERS", [])
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise ImproperlyConfigured("PILLARBOX['PUBLISHERS'] is not a list of database users")
    return list(names)


def _given() -> dict[str, Any]:
    given: dict[str, Any] = getattr(settings, "PILLARBOX", {})
    unknown = sorted(set(given) - set(_KEYS))
    if unknown:
        raise ImproperlyConfigured(
            f"PILLARBOX has the unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}"
        )
    return given
