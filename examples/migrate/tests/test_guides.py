"""The guides as documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from guide import GUIDES, all_guides

TESTS = {
    "clickhouse-connect": "test_clickhouse_connect.py",
    "celery-outbox": "test_celery_outbox.py",
    "typed-outbox": "test_typed_outbox.py",
    "redis-list": "test_redis_list.py",
}


def test_every_guide_is_run_and_in_the_index() -> None:
    assert all_guides() == set(TESTS)
    assert all((Path(__file__).parent / file).exists() for file in TESTS.values())
    index = (GUIDES / "README.md").read_text()
    assert set(re.findall(r"\]\(([\w-]+)\.md\)", index)) == all_guides()


@pytest.mark.parametrize("guide", sorted(all_guides()))
def test_a_guide_says_all_that_one_has_to_know(guide: str) -> None:
    text = (GUIDES / f"{guide}.md").read_text()
    heads = re.findall(r"(?m)^## (.*)$", text)
    assert heads[0] == "What you have"
    assert heads[-3:] == ["Check", "Going back", "At the end"]
