"""Unit tests of business code, without a database."""

from __future__ import annotations

import dataclasses

import pytest

import pillarbox
from pillarbox import Publisher, RawEvent, Recorder


@dataclasses.dataclass
class OrderShipped:
    order: int


@dataclasses.dataclass
class OrderLost:
    order: int


def ship(connection: object, order: int) -> None:
    pillarbox.publish(connection, OrderShipped(order))


def test_a_recorder_stands_in_for_a_connection() -> None:
    recorder = Recorder()
    ship(recorder, 7)
    pillarbox.publish_all(recorder, [OrderShipped(8), OrderLost(9)])
    assert recorder.of(OrderShipped) == [OrderShipped(7), OrderShipped(8)]
    assert recorder.of(OrderLost) != [OrderLost(8)]
    assert recorder.events[0].event_context == '{"order":7}'
    recorder.assert_published(OrderLost(9))
    assert [event.event_type for event in recorder.take()] == [
        "order_shipped",
        "order_shipped",
        "order_lost",
    ]
    recorder.assert_nothing_published()


def test_assertions_say_what_was_published() -> None:
    recorder = Recorder()
    recorder.assert_nothing_published()
    ship(recorder, 7)
    ship(recorder, 7)
    with pytest.raises(AssertionError, match="found 2 in:\n  'order_shipped' {\"order\":7}"):
        recorder.assert_published(OrderShipped(7))
    with pytest.raises(AssertionError, match="expected no event"):
        recorder.assert_nothing_published()


def test_the_publisher_adds_to_events_and_leaves_them_as_they_are() -> None:
    recorder, mine = Recorder(), RawEvent("any", "{}")
    Publisher(environment="staging").publish(recorder, mine)
    assert (recorder.events[0].environment, mine.environment) == ("staging", None)
    assert recorder.events[0].event_id == mine.event_id


def test_the_same_checks_run() -> None:
    with pytest.raises(
        pillarbox.TooLarge, match="has 1048577 bytes, more than the limit of 1048576"
    ):
        pillarbox.publish(Recorder(), RawEvent("any", '"' + "x" * (2**20 - 1) + '"'))
    Publisher(event_bytes_max=2**21).publish(Recorder(), RawEvent("any", '"' + "x" * 2**20 + '"'))


def test_the_fixture_records_on_any_stand_in(published_events: Recorder) -> None:
    ship(object(), 7)
    published_events.assert_published(OrderShipped(7))
    with pillarbox.recording() as inner:
        ship(None, 8)
    ship(None, 9)
    assert len(inner) == 1
    assert [event.order for event in published_events.of(OrderShipped)] == [7, 8, 9]


def test_without_it_a_stand_in_is_no_connection() -> None:
    with pytest.raises(TypeError, match=r"cannot publish on builtins\.object"):
        ship(object(), 7)
