"""One line for each call that published, by structlog where it is configured, else by logging.

Neither contexts nor columns are logged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pillarbox.errors import PillarboxError
from pillarbox.event import RawEvent

try:
    import structlog
except ImportError:  # pragma: no cover
    structlog = None  # type: ignore[assignment]

#: Ids that one line names; the line of a large batch stays readable.
_IDS_MAX = 20

_LOGGER = logging.getLogger("pillarbox")


def published(events: Sequence[RawEvent]) -> None:
    """Says what was written. It is true once the transaction commits."""
    fields: dict[str, Any] = {}
    if len(events) == 1:
        fields["event_id"] = str(events[0].event_id)
        fields["event_type"] = events[0].event_type
    else:
        fields["events"] = len(events)
        fields["event_types"] = sorted({event.event_type for event in events})
        fields["event_ids"] = [str(event.event_id) for event in events[:_IDS_MAX]]
    fields["bytes"] = sum(len(event.event_context.encode()) for event in events)
    message = "event published, if the transaction commits"
    if structlog is not None and structlog.is_configured():
        structlog.get_logger("pillarbox").info(message, **fields)
    else:
        # Also as attributes of the record, for formatters that write JSON.
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        _LOGGER.info("%s: %s", message, text, extra=fields)


def bound(wanted: bool | Iterable[str]) -> Mapping[str, Any]:
    """What is bound to the log context of structlog: everything, or the keys that are named."""
    if structlog is None:
        raise PillarboxError(
            "log_context needs structlog; install it, or pass the values as fields"
        )
    found: dict[str, Any] = structlog.contextvars.get_contextvars()
    if isinstance(wanted, bool):
        wanted = found if wanted else ()
    # The context has an order of its own each time.
    return {name: found[name] for name in sorted(wanted) if name in found}
