"""docs/migrate/celery-outbox.md."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from move import move, users
from testkit import eventually

WAITING = "from event_outbox where not sent"
IN_DOUBT = f"{WAITING} and claimed_at is not null"

#: What the old system has not shipped yet, beside what the producers add.
BACKLOG = """
    with created as (
        insert into users (email)
        select 'backlog-' || n || '@example.org' from generate_series(1, 3000) as n
        returning email
    )
    insert into event_outbox (
        event_id, event_type, event_date_time, environment, event_context, metadata_version, sent
    )
    select gen_random_uuid(), 'user_created', clock_timestamp(), 'production',
        jsonb_build_object('email', email), 1, false
    from created
    returning event_context ->> 'email'
"""


def test_inv_1_and_2_rows_of_an_outbox_table_arrive_once(
    urls: dict[str, str], tmp_path: Path
) -> None:
    with move("celery-outbox", urls, tmp_path) as guide:
        old_app, old = guide.app("before")
        before = guide.producer(old, "before")
        worker = guide.worker("ship_before")
        beat = guide.beat()
        eventually("rows of the old task", lambda: guide.arrived() >= 100)
        guide.clickhouse("columns")
        guide.shell("install")
        relay = guide.daemon("relay")
        guide.sql("claim")
        assert worker.stop() == 0
        emails = [row[0] for row in guide.query(BACKLOG)]
        for hold in ("before", "after"):
            held = guide.worker("ship_claim", HOLD=hold)
            held.says("held")
            held.kill()
        assert guide.count(IN_DOUBT) == 200
        new_app, new = guide.app("after")
        after = guide.producer(new, "after")
        waiting_before = guide.count(WAITING)
        shipped = guide.arrived()
        worker = guide.worker("ship_claim")
        eventually("rows of the claiming task", lambda: guide.arrived() > shipped)
        guide.interrupted("move")
        with ThreadPoolExecutor() as pool:
            list(pool.map(guide.sql, ["move", "move"]))
        before.reaches(20)
        after.reaches(50)
        emails += before.stop()
        guide.sql("move")
        beat.kill()
        assert worker.stop() == 0
        guide.sql("move")
        assert guide.python("settle.py") == "published 100, arrived 100\n"
        assert guide.python("settle.py") == ""
        assert guide.count(WAITING) == 0
        emails += after.stop()
        guide.settle()
        assert new_app.stop() == 0
        assert relay.stop() == 0
        again = guide.producer(old, "again")
        again.reaches(20)
        emails += again.stop()
        assert old_app.stop() == 0
        guide.worker("ship_claim")
        guide.beat()
        eventually("the way back", lambda: guide.count(WAITING) == 0)
        guide.shell("check")
        guide.check(users(emails, "user_created"), waiting_before)


def test_negative_control_a_task_that_claims_nothing_is_doubled_by_a_move(
    urls: dict[str, str], tmp_path: Path
) -> None:
    with move("celery-outbox", urls, tmp_path) as guide:
        guide.clickhouse("columns")
        guide.shell("install")
        guide.sql("claim")
        emails = [row[0] for row in guide.query(BACKLOG)]
        guide.beat()
        held = guide.worker("ship_before", HOLD="after")
        held.says("held")
        held.kill()
        guide.sql("move")
        relay = guide.daemon("relay")
        guide.settle()
        assert relay.stop() == 0
        lost, doubled = guide.differences(users(emails, "user_created"))
        assert (lost.total(), doubled.total()) == (0, 100)
