"""docs/migrate/redis-list.md."""

from __future__ import annotations

import datetime
import json
import sys
import uuid
from pathlib import Path

from move import Move, move, users
from redis import Redis
from stage import Process
from testkit import eventually


def consumer(guide: Move, module: str, **env: str) -> Process:
    """A consumer of the guide."""
    guide.take(f"{module}.py")
    return guide.start(module, sys.executable, "-m", module, **env)


def backlog(queue: Redis) -> list[str]:
    """What the old system has not consumed yet, beside what the producers add."""
    emails = [f"backlog-{n}@example.org" for n in range(3000)]
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    entries = [
        json.dumps(
            {
                "event_id": str(uuid.uuid4()),
                "event_type": "user_created",
                "event_date_time": now,
                "environment": "production",
                "event_context": {"email": email},
                "metadata_version": 1,
            }
        )
        for email in emails
    ]
    queue.lpush("events", *entries)
    return emails


def test_inv_2_and_14_entries_of_a_list_arrive_once(urls: dict[str, str], tmp_path: Path) -> None:
    with move("redis-list", urls, tmp_path) as guide, Redis.from_url(urls["redis"]) as queue:
        old_app, old = guide.app("before")
        before = guide.producer(old, "before")
        old_consumer = consumer(guide, "consume_before")
        eventually("rows of the old consumer", lambda: guide.arrived() >= 100)
        guide.clickhouse("columns")
        guide.shell("install")
        relay = guide.daemon("relay")
        assert old_consumer.stop() == 0
        emails = backlog(queue)
        for hold in ("before", "after"):
            held = consumer(guide, "consume_claim", HOLD=hold)
            held.says("held")
            held.kill()
        assert queue.llen("events:in-hand") == 200
        waiting_before = queue.llen("events") + queue.llen("events:in-hand")
        shipped = guide.arrived()
        beside = consumer(guide, "consume_claim")
        eventually("rows of the claiming consumer", lambda: guide.arrived() > shipped)
        guide.take("pillarbox.toml")
        intake = guide.daemon("intake")
        eventually("entries that are taken over", lambda: guide.count("from pillarbox.event"))
        before.reaches(50)
        assert beside.stop() == 0
        assert guide.python("settle.py") == "queued 100, arrived 100\n"
        assert guide.python("settle.py") == "queued 0, arrived 0\n"
        new_app, new = guide.app("after")
        after = guide.producer(new, "after")
        before.reaches(50)
        after.reaches(50)
        emails += before.stop() + after.stop()
        assert old_app.stop() == 0
        assert new_app.stop() == 0
        assert queue.llen("events:in-hand") == 0
        eventually(
            "an empty queue",
            lambda: not [key for key in queue.keys("events*") if key != b"events:taken"],
        )
        guide.settle()
        assert intake.stop() == 0
        assert relay.stop() == 0
        guide.shell("check")
        guide.check(users(emails, "user_created"), waiting_before)
