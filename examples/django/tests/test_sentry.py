"""What reaches Sentry, by a receiver that decodes the envelopes."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from stage import Stage
from testkit import eventually

SECRET = "s3cret-of-the-event"


class Receiver:
    """Takes envelopes: a line of JSON, then for each item a line with its length and the item."""

    def __init__(self) -> None:
        self.items: list[tuple[str, Any]] = []
        self.text = ""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(body)
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args: Any) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.dsn = f"http://key@127.0.0.1:{self.server.server_port}/1"

    def take(self, body: bytes) -> None:
        self.text += body.decode()
        _, _, rest = body.partition(b"\n")
        while rest:
            line, _, rest = rest.partition(b"\n")
            header = json.loads(line)
            length = header.get("length", len(rest.partition(b"\n")[0]))
            item, rest = rest[:length], rest[length:].lstrip(b"\n")
            self.items.append((header["type"], json.loads(item)))

    def of(self, kind: str) -> list[Any]:
        return [item for of, item in self.items if of == kind]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.mark.usefixtures("http")
def test_a_request_is_a_transaction_whose_trace_the_event_carries(
    shared: Stage, receiver: Receiver
) -> None:
    _, http = shared.start_app(SENTRY_DSN=receiver.dsn)
    assert http.create(f"{SECRET}@example.org", first_name=SECRET)[0] == 201
    (sent,) = eventually("a transaction", lambda: receiver.of("transaction"))
    assert sent["transaction"] == "/users"
    assert sent["request"]["method"] == "POST"
    assert "data" not in sent["request"]
    ((parent,),) = shared.query("select trace_parent from pillarbox.event")
    version, trace, span, flags = parent.split("-")
    context = sent["contexts"]["trace"]
    spans = {context["span_id"], *(each["span_id"] for each in sent["spans"])}
    assert (version, trace, flags) == ("00", context["trace_id"], "01")
    assert span in spans
    assert receiver.of("event") == []
    assert SECRET not in receiver.text


@pytest.mark.usefixtures("http")
def test_errors_are_reported_without_data(shared: Stage, receiver: Receiver) -> None:
    _, http = shared.start_app(SENTRY_DSN=receiver.dsn, USERS_FAIL_RATE="1")
    assert http.create(f"{SECRET}@example.org", last_name=SECRET)[0] == 500
    (sent,) = eventually("an error", lambda: receiver.of("event"))
    (exception,) = sent["exception"]["values"]
    assert exception["type"] == "Injected"
    (transaction,) = eventually("a transaction", lambda: receiver.of("transaction"))
    assert sent["contexts"]["trace"]["trace_id"] == transaction["contexts"]["trace"]["trace_id"]
    frames = exception["stacktrace"]["frames"]
    assert frames
    assert all("vars" not in frame for frame in frames)
    assert SECRET not in receiver.text
    assert "postgresql://" not in receiver.text


@pytest.mark.usefixtures("http")
def test_an_error_of_the_database_does_not_quote_the_row(shared: Stage, receiver: Receiver) -> None:
    with psycopg.connect(shared.database_url, autocommit=True) as admin:
        admin.execute("alter table public.users add constraint c check (last_name <> 'x')")
    # A check is an IntegrityError, too: it must not pass for a known email.
    _, http = shared.start_app(SENTRY_DSN=receiver.dsn)
    assert http.create("x@example.org", first_name=SECRET, last_name="x")[0] == 500
    (sent,) = eventually("an error", lambda: receiver.of("event"))
    assert [each["type"] for each in sent["exception"]["values"]][-1] == "IntegrityError"
    assert SECRET not in receiver.text


def test_a_delivery_that_fails_is_reported(
    shared: Stage, receiver: Receiver, tmp_path: Path
) -> None:
    program = tmp_path / "pillarbox"
    program.write_text("#!/bin/sh\necho 'error: the table elsewhere is missing' >&2\nexit 3\n")
    program.chmod(0o755)
    env = {"SENTRY_DSN": receiver.dsn, "PILLARBOX": str(program), "RELAY_EVERY_S": "0.2"}
    shared.start_worker(**env)
    shared.start_beat(tmp_path, **env)
    sent = eventually("an error", lambda: receiver.of("event"))[0]
    (exception,) = sent["exception"]["values"]
    assert exception["type"] == "DeliveryFailed"
    assert exception["value"] == "error: the table elsewhere is missing"
    assert "testkit@" not in receiver.text
