"""docs/migrate/clickhouse-connect.md."""

from __future__ import annotations

from pathlib import Path

from move import move, users
from stage import clickhouse


def test_inv_1_and_2_requests_that_insert_and_requests_that_publish_run_side_by_side(
    urls: dict[str, str], tmp_path: Path
) -> None:
    with move("clickhouse-connect", urls, tmp_path) as guide:
        old_app, old = guide.app("before")
        before = guide.producer(old, "before")
        before.reaches(50)
        guide.clickhouse("columns")
        before.reaches(50)
        guide.shell("install")
        relay = guide.daemon("relay")
        before.reaches(50)
        new_app, new = guide.app("after")
        after = guide.producer(new, "after")
        before.reaches(100)
        after.reaches(100)
        emails = before.stop()
        assert old_app.stop() == 0
        guide.clickhouse("window")
        assert relay.stop() == 0
        relay = guide.daemon("relay")
        assert "token" in guide.shell("window-check")
        after.reaches(100)
        emails += after.stop()
        guide.settle()
        assert new_app.stop() == 0
        guide.clickhouse("back")
        assert relay.stop() == 0
        relay = guide.daemon("relay")
        _, old = guide.app("before")
        again = guide.producer(old, "again")
        again.reaches(20)
        emails += again.stop()
        assert relay.stop() == 0
        guide.shell("check")
        guide.check(users(emails, "user_created"), waiting_before=0)


def test_a_window_drops_equal_inserts_without_a_token(urls: dict[str, str]) -> None:
    url = urls["clickhouse"]
    clickhouse(url, "create table equal (n UInt8) engine = MergeTree order by n")
    for _ in range(2):
        clickhouse(url, "insert into equal values (1)")
    assert clickhouse(url, "select count() from equal").strip() == "2"
    clickhouse(url, "alter table equal modify setting non_replicated_deduplication_window = 10000")
    for _ in range(2):
        clickhouse(url, "insert into equal values (2)")
    assert clickhouse(url, "select count() from equal where n = 2").strip() == "1"
