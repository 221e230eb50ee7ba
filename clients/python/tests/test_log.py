"""Lines and trace parents."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import pillarbox
from pillarbox import RawEvent, Recorder

SECRET = "s3cret-of-the-event"


@dataclasses.dataclass
class UserCreated:
    email: str


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    structlog.contextvars.clear_contextvars()
    with structlog.testing.capture_logs() as found:
        yield found
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_structlog_gets_one_line_with_the_id(lines: list[Any], published_events: Recorder) -> None:
    event_id = pillarbox.publish(None, UserCreated(SECRET))
    (line,) = lines
    assert line == {
        "event": "event published, if the transaction commits",
        "log_level": "info",
        "event_id": str(event_id),
        "event_type": "user_created",
        "bytes": len(published_events.events[0].event_context),
    }


@pytest.mark.usefixtures("published_events")
def test_many_events_are_one_line(lines: list[Any]) -> None:
    ids = pillarbox.publish_all(None, [UserCreated(SECRET) for _ in range(30)])
    (line,) = lines
    assert (line["events"], line["event_types"]) == (30, ["user_created"])
    assert line["event_ids"] == [str(each) for each in ids[:20]]
    assert SECRET not in str(line)
    pillarbox.publish_all(None, [])
    assert len(lines) == 1


@pytest.mark.usefixtures("published_events")
def test_without_structlog_it_is_a_record_of_logging(caplog: pytest.LogCaptureFixture) -> None:
    structlog.reset_defaults()
    caplog.set_level(logging.INFO, "pillarbox")
    event_id = pillarbox.publish(None, UserCreated(SECRET))
    (record,) = caplog.records
    assert f"event_id={event_id} event_type=user_created" in record.getMessage()
    assert vars(record)["event_id"] == str(event_id)
    assert SECRET not in caplog.text


@pytest.mark.usefixtures("lines")
def test_bound_context_enters_the_event_only_if_asked_for() -> None:
    recorder = Recorder()
    structlog.contextvars.bind_contextvars(request_id="r1", user_id=7)
    pillarbox.publish(recorder, UserCreated("a"))
    pillarbox.publish(recorder, UserCreated("a"), log_context=True)
    pillarbox.publish(recorder, UserCreated("a"), log_context=["user_id", "nowhere"])
    pillarbox.publish_all(recorder, [RawEvent("any", "{ }")], log_context=["user_id"])
    structlog.contextvars.clear_contextvars()
    pillarbox.publish(recorder, UserCreated("a"), log_context=True)
    assert [event.event_context for event in recorder] == [
        '{"email":"a"}',
        '{"email":"a","log_context":{"request_id":"r1","user_id":7}}',
        '{"email":"a","log_context":{"user_id":7}}',
        '{ "log_context":{"user_id":7}}',
        '{"email":"a"}',
    ]
    assert all(json.loads(event.event_context) for event in recorder if "email" in str(event))


@pytest.mark.usefixtures("lines")
def test_bound_context_needs_an_object_without_the_key() -> None:
    structlog.contextvars.bind_contextvars(request_id="r1")
    for text, reason in (("[1]", "not an object"), ('{"log_context":1}', "has the key")):
        with pytest.raises(pillarbox.NotJson, match=reason):
            pillarbox.publish(Recorder(), RawEvent("any", text), log_context=True)


def parent_of(recorder: Recorder) -> Any:
    return recorder.events[-1].trace_parent


def test_the_trace_parent_is_the_current_span() -> None:
    recorder = Recorder()
    pillarbox.publish(recorder, UserCreated("a"))
    assert parent_of(recorder) is None
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("create_user") as span:
        pillarbox.publish(recorder, UserCreated("a"))
        context = span.get_span_context()
        flags = int(context.trace_flags)
        wanted = f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"
        assert parent_of(recorder) == wanted
        pillarbox.publish(recorder, UserCreated("a"), trace_parent="00-mine")
        assert parent_of(recorder) == "00-mine"
    context = trace.SpanContext(
        0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, is_remote=True
    )
    with trace.use_span(trace.NonRecordingSpan(context)):
        pillarbox.publish(recorder, UserCreated("a"))
        assert parent_of(recorder) == "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


def test_sentrys_span_comes_second() -> None:
    import sentry_sdk

    recorder = Recorder()
    with sentry_sdk.isolation_scope():
        sentry_sdk.init(dsn="", traces_sample_rate=1.0, default_integrations=False)
        client = sentry_sdk.get_client()
        try:
            with sentry_sdk.start_transaction(name="create_user") as span:
                pillarbox.publish(recorder, UserCreated("a"))
                parent = f"00-{span.trace_id}-{span.span_id}-"
                assert parent_of(recorder).startswith(parent)
                tracer = TracerProvider().get_tracer("test")
                with tracer.start_as_current_span("create_user"):
                    pillarbox.publish(recorder, UserCreated("a"))
                    assert not parent_of(recorder).startswith(parent)
        finally:
            client.close()
            sentry_sdk.get_global_scope().set_client(None)
