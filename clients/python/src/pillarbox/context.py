"""Event contexts: from a typed event to compact JSON, the same bytes for the same event.

Fields come in the order of their declaration, as from the Rust crate. Errors name where a value is
and its type, never the value.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import math
import re
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from pillarbox.errors import NotJson

#: A NUL as JSON writes it: an odd number of backslashes before ``u0000``.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

#: Most values of most events.
_AS_THEY_ARE = frozenset((str, int, bool, type(None)))

_NOT_FINITE = "JSON has neither NaN nor infinity; pass None or leave it out"

#: JSON has no form for these, and two orders or encodings would both be right.
_REMEDIES: dict[type, str] = {
    set: "a set has no order; pass a sorted list",
    frozenset: "a set has no order; pass a sorted list",
    bytes: "bytes are not text; encode them, for example as base64",
    complex: "pass two numbers",
    datetime.timedelta: "pass its seconds as a number",
}


def _refuse_constant(_: str) -> None:
    raise ValueError


def _skip(_: str) -> int:
    # Numbers are not converted: only their form matters, and converting long ones is slow.
    return 0


# Made once: making one takes longer than encoding a small event.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_skip, parse_float=_skip)


def encode(event_type: str, value: Any) -> str:
    """Compact JSON of a pydantic model, a dataclass, or a mapping of such.

    Raises :class:`NotJson`.
    """
    try:
        if _is_model(value):
            text = _of_model(event_type, value)
        else:
            text = _ENCODER.encode(plain(event_type, value))
    except RecursionError:
        raise _not_json(event_type, "", "it refers to itself, or is nested too deeply") from None
    check_text(event_type, text)
    if "\\u0000" in text and _NUL.search(text):
        reason = (
            "a text in it contains NUL (\\u0000), which PostgreSQL cannot hold as text; remove it"
        )
        raise _not_json(event_type, "", reason)
    return text


def plain(event_type: str, value: Any) -> Any:
    """What :mod:`json` takes: only dictionaries, lists, text, numbers, booleans and ``None``."""
    return _plain(event_type, value, "")


def check_json(event_type: str, text: str) -> None:
    """Refuses text that is not one complete JSON value."""
    check_text(event_type, text)
    if "\0" in text:
        raise _not_json(event_type, "", "it contains a NUL character; remove it")
    try:
        _DECODER.decode(text)
    except (ValueError, RecursionError):
        # The error of json holds the whole text.
        pass
    else:
        return
    raise _not_json(event_type, "", "pass one complete JSON value")


def check_text(event_type: str, text: str) -> None:
    """Refuses halves of surrogate pairs, which UTF-8 has no form for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # The error holds the whole text.
        pass
    else:
        return
    raise _not_json(event_type, "", "a text in it holds half of a surrogate pair; repair the text")


def _of_model(event_type: str, model: Any) -> str:
    dumped = _dumped(event_type, model, "")
    try:
        return _ENCODER.encode(dumped)
    except ValueError:
        # NaN: found again below, with its place.
        pass
    return _ENCODER.encode(_plain(event_type, dumped, ""))


def _plain(event_type: str, value: Any, path: str) -> Any:
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, enum.Enum):
        return _plain(event_type, value.value, path)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        raise _not_json(event_type, path, _NOT_FINITE)
    if _is_model(value):
        return _plain(event_type, _dumped(event_type, value, path), path)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(event_type, getattr(value, field.name), f"{path}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return _object(event_type, value, path)
    if isinstance(value, (list, tuple)):
        return [_plain(event_type, item, f"{path}[{at}]") for at, item in enumerate(value)]
    text = _scalar(value)
    if text is not None:
        return text
    remedy = _REMEDIES.get(type(value), "pass text, a number, a list or a mapping")
    raise _not_json(event_type, path, f"JSON has no form for {type(value).__name__}: {remedy}")


def _scalar(value: Any) -> str | None:
    """Dates, times, UUIDs and decimals as pydantic writes them; ``None``: none of these."""
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, decimal.Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, (datetime.datetime, datetime.time)):
        text = value.isoformat()
        return text[:-6] + "Z" if text.endswith("+00:00") else text
    if isinstance(value, datetime.date):
        return value.isoformat()
    return None


def _object(event_type: str, value: Mapping[Any, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        inner = key.value if isinstance(key, enum.Enum) else key
        if isinstance(inner, bool) or not isinstance(inner, (str, int, uuid.UUID)):
            reason = f"a key is {type(inner).__name__}; JSON needs text as keys"
            raise _not_json(event_type, path, reason)
        name = str(inner)
        if name in found:
            raise _not_json(event_type, path, "two keys are the same as text; rename one")
        # A key may be data: it is not part of the path.
        found[name] = _plain(event_type, item, f"{path}{{}}")
    return found


def _is_model(value: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(value, pydantic.BaseModel)


def _dumped(event_type: str, model: Any, path: str) -> Any:
    try:
        # Not model_dump_json, which writes NaN as null; JSON mode does so where the field is Any.
        dumped = model.model_dump(mode="json", warnings="error")
        hides_nan = _holds_null(dumped) and _holds_nan(model.model_dump())
    except (ValueError, TypeError) as error:
        # The message may quote a value.
        kind = type(error).__name__
    else:
        if not hides_nan:
            return dumped
        raise _not_json(event_type, path, _NOT_FINITE)
    raise _not_json(event_type, path, f"pydantic cannot serialise it ({kind})")


def _holds_null(value: Any) -> bool:
    if type(value) is dict:
        return any(map(_holds_null, value.values()))
    if type(value) is list:
        return any(map(_holds_null, value))
    return value is None


def _holds_nan(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_nan, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_nan, value))
    return isinstance(value, float) and not math.isfinite(value)


def _not_json(event_type: str, path: str, reason: str) -> NotJson:
    where = f" at {path.lstrip('.')}" if path else ""
    return NotJson(f"event_context of event type {event_type!r} is not JSON{where}: {reason}")
