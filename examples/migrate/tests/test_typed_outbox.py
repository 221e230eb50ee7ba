"""docs/migrate/typed-outbox.md."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from move import move, users
from testkit import eventually

WAITING = "from (select id from outbox_user union all select id from outbox_login) as waiting"

#: What the old system has not shipped yet, beside what the producers add.
BACKLOG = """
    with created as (
        insert into users (email)
        select 'backlog-' || n || '@example.org' from generate_series(1, 1500) as n
        returning id, email
    ), created_events as (
        insert into outbox_user (user_id, created_at) select id, clock_timestamp() from created
    ), logins as (
        insert into outbox_login (user_id, address, created_at)
        select id, '192.0.2.2', clock_timestamp() from created
    )
    select email from created
"""


def test_inv_1_and_2_rows_of_typed_outbox_tables_arrive_once(
    urls: dict[str, str], tmp_path: Path
) -> None:
    with move("typed-outbox", urls, tmp_path) as guide:
        old_app, old = guide.app("before")
        before = guide.producer(old, "before")
        worker = guide.worker("ship_before")
        beat = guide.beat()
        eventually("rows of the old task", lambda: guide.arrived() >= 200)
        guide.clickhouse("columns")
        guide.shell("install")
        relay = guide.daemon("relay")
        assert worker.stop() == 0
        guide.sql("claim")
        emails = [row[0] for row in guide.query(BACKLOG)]
        for hold in ("before", "after"):
            held = guide.worker("ship_claim", HOLD=hold)
            held.says("held")
            held.kill()
        assert guide.count("from outbox_event where claimed_at is not null") == 200
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
        assert old_app.stop() == 0
        beat.kill()
        assert worker.stop() == 0
        guide.sql("move")
        assert guide.python("settle.py") == "outbox_user: published 100, arrived 100\n"
        assert guide.python("settle.py") == ""
        assert guide.count(WAITING) == 0
        emails += after.stop()
        guide.settle()
        assert new_app.stop() == 0
        assert relay.stop() == 0
        guide.shell("check")
        guide.check(users(emails, "user_created", "user_logged_in"), waiting_before)
