"""What a request leaves behind: the same as with the Rust sample."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any
from uuid import UUID

import psycopg
import pytest
from stage import Http, Stage
from testkit import eventually

CONTEXT = '{"email":"ada@example.org","first_name":"Ada","last_name":"Lovelace"}'


def counts(stage: Stage) -> tuple[int, int]:
    sql = "select (select count(*) from users), (select count(*) from pillarbox.event)"
    (row,) = stage.query(sql)
    return row[0], row[1]


def test_a_new_user_is_created_with_its_event(http: Http, shared: Stage) -> None:
    status, body = http.create("ada@example.org")
    assert status == 201
    assert isinstance(body["id"], int)
    assert body["created_at"].endswith("Z")
    del body["id"], body["created_at"]
    assert body == {"email": "ada@example.org", "first_name": "Ada", "last_name": "Lovelace"}
    found = shared.query("select event_type, event_context::text from pillarbox.event")
    assert found == [("user_created", CONTEXT)]


def test_a_known_email_is_a_conflict_without_an_event(http: Http, shared: Stage) -> None:
    assert http.create("ada@example.org")[0] == 201
    for email in ("ada@example.org", " ada@example.org "):
        assert http.create(email) == (409, {"error": "User with this email already exists"})
    assert counts(shared) == (1, 1)


def test_concurrent_requests_for_one_email_create_one_user(http: Http, shared: Stage) -> None:
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(http.create("ada@example.org")[0]))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] + [409] * 15
    assert counts(shared) == (1, 1)


def test_a_concurrent_user_that_is_rolled_back_does_not_count(http: Http, shared: Stage) -> None:
    answers: list[int] = []
    with psycopg.connect(shared.database_url) as other:
        other.execute(
            "insert into users (email, first_name, last_name, created_at) "
            "values ('ada@example.org', '', '', now())"
        )
        thread = threading.Thread(target=lambda: answers.append(http.create("ada@example.org")[0]))
        thread.start()
        waits = "select count(*) > 0 from pg_locks where not granted"
        eventually("the request to wait", lambda: shared.query(waits)[0][0])
        other.rollback()
    thread.join()
    assert answers == [201]
    assert counts(shared) == (1, 1)


@pytest.mark.usefixtures("http")
def test_inv_1_a_request_rolled_back_after_publishing_leaves_nothing(shared: Stage) -> None:
    _, failing = shared.start_app(USERS_FAIL_RATE="1")
    for _ in range(3):
        error = {"error": "the user was not created; try again"}
        assert failing.create("ada@example.org") == (500, error)
    assert counts(shared) == (0, 0)


def test_inv_1_an_event_that_cannot_be_published_takes_the_user_with_it(
    http: Http, shared: Stage
) -> None:
    with psycopg.connect(shared.database_url, autocommit=True) as admin:
        admin.execute("alter table pillarbox.event rename to elsewhere")
        try:
            assert http.create("ada@example.org")[0] == 500
        finally:
            admin.execute("alter table pillarbox.elsewhere rename to event")
    assert counts(shared) == (0, 0)


ADA = {"email": "ada@example.org", "first_name": "Ada", "last_name": "Lovelace"}


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"email": None}, "email", "is required"),
        ({"email": "ada"}, "email", "is not an email address"),
        ({"email": "a@b@c.org"}, "email", "is not an email address"),
        ({"email": "a b@c.org"}, "email", "is not an email address"),
        ({"email": "ada@localhost"}, "email", "is not an email address"),
        ({"email": "a@c..org"}, "email", "is not an email address"),
        ({"first_name": " "}, "first_name", "must not be empty"),
        ({"last_name": "x" * 151}, "last_name", "must not have more than 150 characters"),
        ({"last_name": "a\0b"}, "last_name", "must not contain control characters"),
    ],
)
def test_what_is_not_valid_is_refused_and_named(
    http: Http, shared: Stage, fields: dict[str, Any], field: str, reason: str
) -> None:
    status, answer = http.call("POST", "/users", json.dumps({**ADA, **fields}).encode())
    assert (status, answer["fields"], answer["error"]) == (
        422,
        {field: reason},
        f"{field} {reason}",
    )
    assert counts(shared) == (0, 0)


def test_requests_that_cannot_be_read_are_refused(http: Http) -> None:
    for body, wanted in ((b'{"email": 5}', 422), (b"{", 400), (b"[]", 422), (b"\xff", 400)):
        status, answer = http.call("POST", "/users", body)
        assert (status, isinstance(answer["error"], str)) == (wanted, True)
    assert len(http.call("POST", "/users", b"{}")[1]["fields"]) == 3
    assert http.create("x" * 20_000)[0] == 413
    assert http.call("POST", "/users", b"{}", kind="text/plain")[0] == 415
    assert http.call("GET", "/elsewhere")[0] == 404
    assert http.call("GET", "/healthz")[0] == 204


def test_a_list_is_bounded_and_goes_on(http: Http, shared: Stage) -> None:
    with psycopg.connect(shared.database_url) as session:
        session.execute(
            "insert into users (email, first_name, last_name, created_at) "
            "select n || '@example.org', 'Ada', 'Lovelace', now() from generate_series(1, 250) n"
        )
    first = http.call("GET", "/users")[1]["users"]
    assert (len(first), first[0]["email"]) == (100, "1@example.org")
    rest = http.call("GET", f"/users?after={first[-1]['id']}&limit=1000")[1]["users"]
    assert len(rest) == 150
    for query in ("limit=0", "limit=1001"):
        status, answer = http.call("GET", f"/users?{query}")
        assert (status, answer["error"]) == (422, "limit must be from 1 to 1000")
    assert http.call("GET", "/users?limit=x")[0] == 400


def test_logs_hold_the_use_case_and_no_personal_data(shared: Stage, http: Http) -> None:
    app, http = shared.start_app()
    assert http.create("ada@example.org")[0] == 201
    assert http.create("ada@example.org")[0] == 409
    with psycopg.connect(shared.database_url, autocommit=True) as admin:
        admin.execute("alter table pillarbox.event rename to elsewhere")
        try:
            assert http.create("bob@example.org")[0] == 500
        finally:
            admin.execute("alter table pillarbox.elsewhere rename to event")
    assert app.stop() == 0
    for personal in ("@example.org", "Lovelace", "Ada"):
        assert personal not in app.log
    found = [line for line in app.lines() if line.get("use_case") == "create_user"]
    assert [line["outcome"] for line in found] == ["created", "already_exists", "rolled_back"]
    (event_id,) = shared.query("select event_id from pillarbox.event")[0]
    assert UUID(found[0]["event_id"]) == event_id
    assert "manage.py migrate pillarbox" in found[2]["error"]
    published = [line for line in app.lines() if line["logger"] == "pillarbox"]
    assert published[0]["event_id"] == str(event_id)
    assert published[0]["request_id"] == found[0]["request_id"]


def test_sigterm_lets_an_open_request_finish(shared: Stage, http: Http) -> None:
    app, http = shared.start_app()
    answers: list[int] = []
    with psycopg.connect(shared.database_url) as other:
        other.execute(
            "insert into users (email, first_name, last_name, created_at) "
            "values ('ada@example.org', '', '', now())"
        )
        thread = threading.Thread(target=lambda: answers.append(http.create("ada@example.org")[0]))
        thread.start()
        waits = "select count(*) > 0 from pg_locks where not granted"
        eventually("the request to wait", lambda: shared.query(waits)[0][0])
        stopping = threading.Thread(target=app.stop)
        stopping.start()
        app.says("Handling signal: term")
        other.rollback()
    thread.join()
    stopping.join()
    assert answers == [201]
    assert counts(shared) == (1, 1)


def test_what_was_created_arrives(http: Http, shared: Stage) -> None:
    status, body = http.create("grace@example.org", first_name="Zoë", last_name='D\'Arcy "Z"\\')
    assert (status, body["first_name"]) == (201, "Zoë")
    before = {row[0] for row in shared.arrived()}
    shared.pillarbox("relay", "--once")
    rows = shared.arrived("toString(event_id), toString(event_type), event_context")
    (context,) = [context for event_id, _, context in rows if event_id not in before]
    ((wanted,),) = shared.query("select event_context::text from pillarbox.event")
    assert context == wanted


def test_the_check_has_nothing_to_say(shared: Stage) -> None:
    findings = json.loads(shared.manage("pillarbox_check", "--json"))
    assert {finding["level"] for finding in findings} == {"ok"}


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({"DATABASE_URL": ""}, "DATABASE_URL is not set"),
        ({"USERS_FAIL_RATE": "2"}, "USERS_FAIL_RATE is '2'"),
        ({"LOG_FORMAT": "xml"}, "LOG_FORMAT is 'xml'"),
        ({"RELAY_EVERY_S": "0"}, "RELAY_EVERY_S is '0'"),
    ],
)
def test_a_wrong_environment_is_named(shared: Stage, env: dict[str, str], wanted: str) -> None:
    process = shared.start("manage.py", sys.executable, "manage.py", "check", **env)
    process.says(wanted)
