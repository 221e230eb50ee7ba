"""The trace context of the publisher, which joins its trace to the delivery.

Only tracers that the application has imported are asked: this package imports none.
"""

from __future__ import annotations

import sys


def current_parent() -> str | None:
    """The current span of OpenTelemetry, else of Sentry, as a W3C ``traceparent``."""
    return _of_opentelemetry() or _of_sentry()


def _of_opentelemetry() -> str | None:
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"


def _of_sentry() -> str | None:
    sentry = sys.modules.get("sentry_sdk")
    if sentry is None or not sentry.is_initialized():
        return None
    # "TRACE-SPAN-SAMPLED", the last part only where it is decided. Without a span it is that of
    # the incoming request, or a trace that errors of this scope carry.
    parts = (sentry.get_traceparent() or "").split("-")
    if len(parts) < 2 or len(parts[0]) != 32 or len(parts[1]) != 16:
        return None
    sampled = "01" if parts[2:3] == ["1"] else "00"
    return f"00-{parts[0]}-{parts[1]}-{sampled}"
