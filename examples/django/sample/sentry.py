"""Sentry, where `SENTRY_DSN` is set: errors and transactions, without bodies, values or secrets."""

from __future__ import annotations

from typing import Any

import sentry_sdk
from sentry_sdk.types import Event, Hint

#: What a request keeps: neither body, query, cookies nor headers.
_REQUEST_FIELDS = ("method", "url")


def configure(dsn: str) -> None:
    """Does nothing without a DSN."""
    if not dsn:
        return
    sentry_sdk.init(
        dsn=dsn,
        traces_sample_rate=1.0,
        send_default_pii=False,
        max_request_body_size="never",
        # Local variables hold requests, users and events.
        include_local_variables=False,
        before_send=_scrub,
        before_send_transaction=_scrub,
    )


def _scrub(event: Event, _: Hint) -> Event | None:
    from sample.failures import may_quote

    request: dict[str, Any] = event.get("request") or {}
    if request:
        event["request"] = {key: request[key] for key in _REQUEST_FIELDS if key in request}
    exceptions: Any = event.get("exception") or {}
    for exception in exceptions.get("values", []):
        if may_quote(exception.get("module") or ""):
            exception["value"] = "not shown, because it may quote a row"
    # Arguments of a process may be addresses with passwords.
    extra: Any = event.get("extra") or {}
    extra.pop("sys.argv", None)
    return event
