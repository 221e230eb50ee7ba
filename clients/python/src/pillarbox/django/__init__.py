"""Publish events inside ``transaction.atomic()``.

Add ``"pillarbox.django"`` to ``INSTALLED_APPS`` and run ``manage.py migrate``; then::

    with transaction.atomic():
        user = User.objects.create(email=email)
        pillarbox.django.publish(UserCreated(email=email))

Settings, all optional: ``PILLARBOX = {"ENVIRONMENT": "staging", "EVENT_BYTES_MAX": 1048576,
"PUBLISHERS": ["app_user"]}``. ``PUBLISHERS`` are database users that ``migrate`` lets publish.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from pillarbox.publisher import LogContext

__all__ = ["publish", "publish_all"]


def publish(
    event: object,
    *,
    using: str = "default",
    event_id: uuid.UUID | None = None,
    event_date_time: datetime.datetime | None = None,
    environment: str | None = None,
    metadata_version: int | None = None,
    trace_parent: str | None = None,
    columns: Mapping[str, Any] | None = None,
    log_context: LogContext = False,
) -> uuid.UUID:
    """Publishes one event in the transaction of the database ``using``; see
    :meth:`pillarbox.Publisher.publish`.

    A statement that the database refuses marks the block for rollback, as a failed save does.
    """
    from django.db import connections

    from pillarbox.django.conf import publisher

    return publisher().publish(
        connections[using],
        event,
        event_id=event_id,
        event_date_time=event_date_time,
        environment=environment,
        metadata_version=metadata_version,
        trace_parent=trace_parent,
        columns=columns,
        log_context=log_context,
    )


def publish_all(
    events: Iterable[object], *, using: str = "default", log_context: LogContext = False
) -> list[uuid.UUID]:
    """Publishes many events; see :meth:`pillarbox.Publisher.publish_all`."""
    from django.db import connections

    from pillarbox.django.conf import publisher

    return publisher().publish_all(connections[using], events, log_context=log_context)
