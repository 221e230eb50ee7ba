"""What `make demo-django` runs: the sample and a psycopg publisher under traffic, a Celery worker
that is killed while it delivers; then every event is compared by id and content.

DEMO_SECONDS (20), DEMO_ENGINE=26 (the current engine instead of Debian's 18.16).
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pillarbox
import psycopg
from stage import Http, Stage, stage
from testkit import eventually, servers

#: Below this, a run has shown nothing.
_PUBLISHED_MIN = 500

_SESSIONS = 3
_TAKEN = 0.1
_ROLLED_BACK = 0.2
_BATCH = 40

#: A column of 18.16 holds whole seconds.
_PRECISION = datetime.timedelta(seconds=1)

_NAMES = (
    ("Ada", "Lovelace"),
    ("Zoë", 'D\'Arcy "Z"'),
    ("Łucja", "Nowak\\Kowalska"),
    ("光", "田中"),
)


@dataclasses.dataclass(frozen=True)
class StockMoved:
    """What the psycopg publisher publishes."""

    sku: str
    by: float
    note: str


@dataclasses.dataclass(frozen=True)
class Expected:
    """An event as it must arrive: its time lies between two instants."""

    event_type: str
    context: str
    first: datetime.datetime
    last: datetime.datetime


@dataclasses.dataclass
class Request:
    """A request to create a user, and whether it was answered with 201."""

    email: str
    context: str
    sent: datetime.datetime
    answered: datetime.datetime
    user_id: int | None


class Record:
    """What the publishers know, recorded outside of Pillarbox when COMMIT returned."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.events: dict[str, Expected] = {}
        self.rolled_back = 0
        self.failures: list[str] = []
        self.stop = threading.Event()


def main() -> int:
    """The exit code."""
    seconds = float(os.environ.get("DEMO_SECONDS") or 20)
    engine = "clickhouse" if os.environ.get("DEMO_ENGINE") == "26" else "clickhouse18"
    say(f"starting postgresql, redis and {engine}; migrating by django")
    with (
        servers("postgres", engine, "redis") as urls,
        stage(urls, engine) as made,
        tempfile.TemporaryDirectory() as directory,
    ):
        record = Record()
        app, http = made.start_app(USERS_FAIL_RATE="0.05")
        small = {"RELAY_EVERY_S": "1", "PILLARBOX_RELAY__MAX_ROWS": "200"}
        worker = made.start_worker(**small)
        made.start_beat(Path(directory), **small)
        say(f"the sample serves on {http.base}, celery beat delivers; traffic for {seconds:.0f} s")
        threads = [
            threading.Thread(target=watched, args=(record, create_users, http, session))
            for session in range(_SESSIONS)
        ]
        threads.append(threading.Thread(target=watched, args=(record, move_stock, made)))
        ends = time.monotonic() + seconds
        for thread in threads:
            thread.start()
        eventually("half of the time", lambda: time.monotonic() > ends - seconds / 2)
        eventually("a delivery", lambda: worker.runs("relay --once"))
        worker.kill()
        say("killed the worker with its relay, while it delivers; starting another one")
        worker = made.start_worker(**small)
        eventually("the end of the traffic", lambda: time.monotonic() > ends)
        record.stop.set()
        for thread in threads:
            thread.join()
        if record.failures:
            print("\n".join(record.failures), app.log[-4000:], file=sys.stderr)
            return 1
        settle(record, made, app.lines())
        say("traffic has stopped; waiting until everything has arrived")
        wanted = len(record.events)
        eventually("all events", lambda: len(made.arrived()) >= wanted or is_drained(made))
        return compared(record, made)


def say(text: str) -> None:
    """A line of progress."""
    print(f"demo-django: {text}", file=sys.stderr, flush=True)


def watched(record: Record, work: Any, *arguments: Any) -> None:
    """Runs a publisher; its failure ends the demo."""
    try:
        work(record, *arguments)
    except Exception as error:  # noqa: BLE001
        record.failures.append(f"{work.__name__}: {error!r}")


def create_users(record: Record, http: Http, session: int) -> None:
    """Creates users over HTTP; some emails are taken."""
    taken: list[str] = []
    for number in itertools.count():
        if record.stop.is_set():
            return
        again = bool(taken) and random.random() < _TAKEN
        email = random.choice(taken) if again else f"user-{session}-{number}@example.org"
        first_name, last_name = random.choice(_NAMES)
        context = pillarbox.RawEvent.from_object(
            "any", {"email": email, "first_name": first_name, "last_name": last_name}
        ).event_context
        sent = now()
        status, body = http.create(email, first_name=first_name, last_name=last_name)
        if again != (status == 409) or status not in (201, 409, 500):
            raise AssertionError(f"{email}: {status} {body}")
        if status != 409:
            user_id = body["id"] if status == 201 else None
            record.requests.append(Request(email, context, sent, now(), user_id))
        if status == 201:
            taken.append(email)


def move_stock(record: Record, made: Stage) -> None:
    """Publishes batches by psycopg; some transactions are rolled back."""
    with psycopg.connect(made.database_url) as connection:
        while not record.stop.wait(0.05):
            events = [
                pillarbox.RawEvent.from_event(
                    StockMoved(f"SKU-{random.randrange(10**5):05}", random.uniform(-9, 9), "é—📮\t")
                )
                for _ in range(_BATCH)
            ]
            sent = now()
            pillarbox.publish_all(connection, events)
            if random.random() < _ROLLED_BACK:
                connection.rollback()
                record.rolled_back += len(events)
                continue
            connection.commit()
            for event in events:
                expected = Expected(event.event_type, event.event_context, sent, now())
                record.events[str(event.event_id)] = expected


def settle(record: Record, made: Stage, lines: list[dict[str, Any]]) -> None:
    """Finds the event of each user in the application's log, and what became of each request that
    was not answered with 201 in the business table."""
    event_ids = {line["user_id"]: line["event_id"] for line in lines if "user_id" in line}
    kept = {email: user_id for user_id, email in made.query("select id, email from users")}
    for request in record.requests:
        user_id = request.user_id or kept.get(request.email)
        if user_id is None:
            record.rolled_back += 1
            continue
        record.events[event_ids[user_id]] = Expected(
            "user_created", request.context, request.sent, request.answered
        )


def is_drained(made: Stage) -> bool:
    """Whether nothing is on its way, so that waiting for more is in vain."""
    (sink,) = json.loads(made.pillarbox("status", "--json"))["sinks"]
    return bool(sink["waiting_events"] == 0 and sink["open_batches"] == 0)


def compared(record: Record, made: Stage) -> int:
    """Prints the verdict."""
    columns = (
        "toString(event_id) as i, toString(event_type) as t, event_context as c, "
        "toString(environment) as e, toUInt8(metadata_version) as v, toString(event_date_time) as d"
    )
    ((dead,),) = made.query("select count(*) from pillarbox.dead_letter")
    counts = verdict(record.events, made.arrived(columns), dead)
    say(f"{record.rolled_back} events of rolled-back transactions stayed out")
    holds = not any(counts[name] for name in ("dead", "lost", "duplicated", "phantom", "altered"))
    if counts["published"] < _PUBLISHED_MIN:
        say(f"only {counts['published']} events were published; raise DEMO_SECONDS")
        holds = False
    made.pillarbox("verify")
    print("demo-django: " + " ".join(f"{name}={count}" for name, count in counts.items()))
    return 0 if holds else 1


def verdict(events: dict[str, Expected], rows: list[list[Any]], dead: int) -> dict[str, int]:
    """What was published against what is there, by id and content."""
    times = Counter(row[0] for row in rows)
    altered = {row[0] for row in rows if row[0] in events and is_altered(events[row[0]], row)}
    return {
        "published": len(events),
        "delivered": len(times.keys() & events.keys()),
        "dead": dead,
        "lost": len(events.keys() - times.keys()),
        "duplicated": sum(count - 1 for count in times.values()),
        "phantom": len(times.keys() - events.keys()),
        "altered": len(altered),
    }


def is_altered(expected: Expected, row: list[Any]) -> bool:
    """Whether a row is not what was published."""
    _, event_type, context, environment, version, at = row
    time_of = datetime.datetime.fromisoformat(at).replace(tzinfo=datetime.timezone.utc)
    is_in_time = expected.first - _PRECISION <= time_of <= expected.last
    content = (event_type, context, environment, int(version))
    return content != (expected.event_type, expected.context, "production", 1) or not is_in_time


def now() -> datetime.datetime:
    """Of this machine, on which all servers run."""
    return datetime.datetime.now(datetime.timezone.utc)


if __name__ == "__main__":
    sys.exit(main())
