"""The comparison with which `make demo-django` ends finds what it is for."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from demo import Expected, verdict

AT = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.timezone.utc)
EVENTS = {name: Expected("any", "{}", AT, AT) for name in ("a", "b")}
A = ["a", "any", "{}", "production", 1, "2026-03-01 12:00:00"]
B = ["b", *A[1:]]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([A, B], {}),
        ([A], {"lost": 1, "delivered": 1}),
        ([A, B, B], {"duplicated": 1}),
        ([A, B, ["c", *A[1:]]], {"phantom": 1}),
        ([A, [*B[:2], "{ }", *B[3:]]], {"altered": 1}),
        ([A, ["b", "other", *B[2:]]], {"altered": 1}),
        ([A, [*B[:3], "staging", *B[4:]]], {"altered": 1}),
        ([A, [*B[:4], 2, B[5]]], {"altered": 1}),
        ([A, [*B[:5], "2026-03-01 12:00:01"]], {"altered": 1}),
    ],
)
def test_each_difference_is_counted(rows: list[list[Any]], found: dict[str, int]) -> None:
    nothing = {"dead": 0, "lost": 0, "duplicated": 0, "phantom": 0, "altered": 0}
    assert verdict(EVENTS, rows, 0) == {"published": 2, "delivered": 2, **nothing, **found}
