"""Events and their contexts, without a database."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import math
import uuid
from typing import Any, ClassVar

import pydantic
import pytest

import pillarbox
from pillarbox import RawEvent

UTC = datetime.timezone.utc
SECRET = "s3cret-of-the-event"


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Item:
    price: decimal.Decimal
    colour: Colour = Colour.RED


@dataclasses.dataclass
class OrderShipped:
    order_id: uuid.UUID
    at: datetime.datetime
    items: list[Item]
    notes: dict[str, Any]


class OrderShippedModel(pydantic.BaseModel):
    event_type: ClassVar[str] = "order_shipped"
    order_id: uuid.UUID
    at: datetime.datetime
    items: list[Item]
    notes: dict[str, Any]


ORDER: dict[str, Any] = {
    "order_id": uuid.UUID(int=7),
    "at": datetime.datetime(2026, 3, 1, 12, 30, 0, 5, tzinfo=UTC),
    "items": [Item(decimal.Decimal("12.50"))],
    "notes": {"Zoë": [1, None, True, 1.5, 2**70], "day": datetime.date(2026, 3, 1), "q": 'a"\\'},
}
CONTEXT = (
    '{"order_id":"00000000-0000-0000-0000-000000000007","at":"2026-03-01T12:30:00.000005Z",'
    '"items":[{"price":"12.50","colour":"red"}],'
    '"notes":{"Zoë":[1,null,true,1.5,1180591620717411303424],"day":"2026-03-01","q":"a\\"\\\\"}}'
)


@pytest.mark.parametrize("event", [OrderShipped(**ORDER), OrderShippedModel(**ORDER)])
def test_dataclasses_and_models_give_the_same_compact_bytes(event: object) -> None:
    raw = RawEvent.from_event(event)
    assert (raw.event_type, raw.event_context) == ("order_shipped", CONTEXT)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("UserCreated", "user_created"),
        ("HTTPRequestFailed", "http_request_failed"),
        ("user_created", "user_created"),
        ("Oauth2TokenIssued", "oauth2_token_issued"),
    ],
)
def test_the_type_is_the_name_of_the_class(name: str, wanted: str) -> None:
    kind = dataclasses.make_dataclass(name, [("email", str)])
    assert RawEvent.from_event(kind("a")).event_type == wanted


def test_type_and_version_of_the_class_can_be_chosen() -> None:
    class Renamed(pydantic.BaseModel):
        event_type: ClassVar[str] = "user_created"
        metadata_version: ClassVar[int] = 3

    raw = RawEvent.from_event(Renamed())
    assert (raw.event_type, raw.metadata_version) == ("user_created", 3)
    assert RawEvent.from_event(Renamed(), metadata_version=4).metadata_version == 4


def test_a_type_that_is_data_is_refused() -> None:
    @dataclasses.dataclass
    class Confused:
        event_type: str

    with pytest.raises(pillarbox.InvalidType, match="ClassVar"):
        RawEvent.from_event(Confused("x"))
    for kind in ({"a": 1}, "text", object(), Confused):
        with pytest.raises(pillarbox.InvalidType, match="is not an event"):
            RawEvent.from_event(kind)


@dataclasses.dataclass
class Anything:
    event_type: ClassVar[str] = "any"
    value: Any


def recursive() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": [1, math.nan]}, r"at value\{\}\[1\]: JSON has neither NaN"),
        (math.inf, "JSON has neither NaN nor infinity"),
        (decimal.Decimal("NaN"), "no form for Decimal"),
        (f"{SECRET}\0", "contains NUL"),
        ({f"{SECRET}\0": 1}, "contains NUL"),
        (f"{SECRET}\ud800", "surrogate"),
        ({SECRET}, "sorted list"),
        (SECRET.encode(), "base64"),
        (datetime.timedelta(1), "seconds"),
        ({1.5: SECRET}, "text as keys"),
        ({None: SECRET}, "text as keys"),
        ({1: SECRET, "1": SECRET}, "the same as text"),
        (object(), "no form for object"),
        (recursive(), "refers to itself"),
    ],
)
def test_what_is_not_json_is_named_without_showing_it(value: Any, reason: str) -> None:
    with pytest.raises(pillarbox.NotJson, match=reason) as caught:
        RawEvent.from_event(Anything(value))
    assert SECRET not in repr(caught.value)
    assert caught.value.sqlstate is None
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", [math.nan, "\0", "\ud800", object()])
def test_models_are_held_to_the_same(value: Any) -> None:
    class Model(pydantic.BaseModel):
        value: Any

    with pytest.raises(pillarbox.NotJson):
        RawEvent.from_event(Model(value=value))


def test_a_backslash_before_u0000_is_no_nul() -> None:
    raw = RawEvent.from_event(Anything("\\u0000"))
    assert json.loads(raw.event_context) == {"value": "\\u0000"}


@pytest.mark.parametrize(
    "text",
    [
        '{"total": 12.50, "currency" :"EUR"}',
        '{"b":1,"a":2,"b":3}',
        '{"nul":"\\u0000","slash":"\\/"}',
        "[1e400, -0.0, 1E+2]",
        '[null, "Zoë 📮", 18446744073709551616]',
        "9" * 5000,
    ],
)
def test_raw_contexts_are_kept_as_they_are(text: str) -> None:
    assert RawEvent("any", text).event_context == text


@pytest.mark.parametrize(
    "text", ["", "{", "{}{}", "NaN", "[Infinity]", f'{{"{SECRET}":}}', "'x'", '"\0"', "\ud800"]
)
def test_raw_text_that_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(pillarbox.NotJson) as caught:
        RawEvent("any", text)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"event_date_time": datetime.datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"metadata_version": -1}, "metadata_version"),
        ({"metadata_version": 2**63}, "metadata_version"),
        ({"environment": ""}, "environment"),
        ({"environment": "a\0"}, "NUL"),
        ({"trace_parent": "x" * 256}, "255"),
        ({"event_id": "x"}, "uuid.UUID"),
        ({"columns": {"slot": 1}}, "added to the outbox"),
    ],
)
def test_fields_that_cannot_be_stored_are_named(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(pillarbox.InvalidField, match=reason):
        RawEvent("any", "{}", **fields)


@pytest.mark.parametrize("event_type", ["", "x" * 256, "a\0b"])
def test_types_that_cannot_be_stored_are_refused(event_type: str) -> None:
    with pytest.raises(pillarbox.InvalidType, match="1 to 255"):
        RawEvent(event_type, "{}")


def test_a_raw_event_does_not_show_its_context() -> None:
    assert SECRET not in repr(RawEvent("any", f'"{SECRET}"'))


def test_ids_are_of_version_7_and_sort_by_time() -> None:
    ids = [pillarbox.uuid7() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {(each.version, each.variant) for each in ids} == {(7, uuid.RFC_4122)}
    milliseconds = [each.int >> 80 for each in ids]
    assert milliseconds == sorted(milliseconds)
