"""A Celery worker and beat on Redis, in place of a running relay."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest
from stage import Http, Stage, stage
from testkit import eventually

#: Batches small enough that a worker is killed between two of them.
SMALL = {"PILLARBOX_RELAY__MAX_ROWS": "25", "RELAY_EVERY_S": "0.5"}
SESSIONS = 4
USERS = 100
KILLS = 2


def publish(http: Http, session: int, failures: list[str]) -> None:
    for number in range(USERS):
        status, body = http.create(f"{session}-{number}@example.org")
        if status not in (201, 500):
            failures.append(f"{status} {body}")


class Drain:
    """More rows have arrived, and a relay is still active."""

    #: The class of the locks is "PBOX".
    ACTIVE = """
        select from pg_locks join pg_database d on d.oid = database
        where d.datname = current_database() and locktype = 'advisory' and classid = 1346522968
            and objid in (select sink from pillarbox.sink)
    """

    def __init__(self, made: Stage, before: int) -> None:
        self.made, self.before = made, before

    def is_under_way(self) -> bool:
        return len(self.made.arrived()) > self.before and self.made.query(self.ACTIVE) != []


@pytest.mark.parametrize("engine", ["clickhouse", "clickhouse18"])
def test_inv_2_events_arrive_once_also_when_the_worker_is_killed(
    urls: dict[str, str], tmp_path: Path, engine: str
) -> None:
    with stage(urls, engine) as made:
        _, http = made.start_app(USERS_FAIL_RATE="0.1")
        worker = made.start_worker(**SMALL)
        beat = made.start_beat(tmp_path, **SMALL)
        failures: list[str] = []
        threads = [
            threading.Thread(target=publish, args=(http, session, failures))
            for session in range(SESSIONS)
        ]
        for thread in threads:
            thread.start()
        for _ in range(KILLS):
            before = len(made.arrived())
            eventually("rows of a drain", Drain(made, before).is_under_way)
            worker.kill()
            worker = made.start_worker(**SMALL)
        for thread in threads:
            thread.join()
        assert failures == []
        published = {
            str(event_id) for (event_id,) in made.query("select event_id from pillarbox.event")
        }
        users = made.query("select count(*) from users")[0][0]
        assert 0 < len(published) == users < SESSIONS * USERS
        eventually("all events", lambda: len(made.arrived()) >= len(published))
        worker.says('"outcome": "delivered"')
        beat.kill()
        assert worker.stop() == 0
        found = Counter(row[0] for row in made.arrived())
        assert set(found) == published
        assert set(found.values()) == {1}
        made.pillarbox("verify")
