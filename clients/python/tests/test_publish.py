"""Publishing on connections of psycopg 3 and psycopg 2, on a real server."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import psycopg2
import pytest

import pillarbox
from pillarbox import Publisher, RawEvent, Recorder

UTC = datetime.timezone.utc
SECRET = "s3cret-of-the-event"


@dataclasses.dataclass
class UserCreated:
    email: str


def connect(driver: str, url: str) -> Any:
    return psycopg.connect(url) if driver == "psycopg" else psycopg2.connect(url)


@pytest.fixture(params=["psycopg", "psycopg2"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connection(driver: str, database: str) -> Iterator[Any]:
    opened = connect(driver, database)
    yield opened
    opened.close()


def rows(url: str, columns: str = "event_type, event_context::text") -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as session:
        return session.execute(f"select {columns} from pillarbox.event order by tx, id").fetchall()


def run(connection: Any, sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def test_inv_1_an_event_is_there_when_its_transaction_committed(
    connection: Any, database: str
) -> None:
    event_id = pillarbox.publish(connection, UserCreated("ada@example.org"))
    assert rows(database) == []
    connection.commit()
    wanted = ("user_created", '{"email":"ada@example.org"}', event_id, 1, "production")
    columns = "event_type, event_context::text, event_id, metadata_version, environment"
    assert rows(database, columns) == [wanted]


def test_inv_1_an_event_of_a_transaction_rolled_back_is_not(connection: Any, database: str) -> None:
    pillarbox.publish(connection, UserCreated("ada@example.org"))
    connection.rollback()
    assert rows(database) == []


def test_every_field_arrives(connection: Any, database: str) -> None:
    time = datetime.datetime(1999, 12, 31, 23, 59, 59, 123456, tzinfo=UTC)
    event_id = uuid.uuid4()
    pillarbox.publish(
        connection,
        UserCreated("a"),
        event_id=event_id,
        event_date_time=time,
        environment="staging",
        metadata_version=2**63 - 1,
        trace_parent="00-0-0-00",
    )
    connection.commit()
    columns = "event_id, event_date_time, environment, metadata_version, trace_parent"
    assert rows(database, columns) == [(event_id, time, "staging", 2**63 - 1, "00-0-0-00")]


@pytest.mark.parametrize("count", [0, 1, 2, 4097])
def test_many_at_once_keep_their_order(connection: Any, database: str, count: int) -> None:
    time = datetime.datetime(2026, 1, 1, tzinfo=UTC)
    events = [
        RawEvent.from_event(
            UserCreated(str(at)),
            event_date_time=time if at % 2 else None,
            environment="staging" if at % 3 == 0 else None,
        )
        for at in range(count)
    ]
    ids = pillarbox.publish_all(connection, events)
    connection.commit()
    columns = "event_id, event_context ->> 'email', environment"
    wanted = [
        (event_id, str(at), "staging" if at % 3 == 0 else "production")
        for at, event_id in enumerate(ids)
    ]
    assert rows(database, columns) == wanted


def test_a_batch_is_checked_before_the_first_is_sent(connection: Any, database: str) -> None:
    with pytest.raises(pillarbox.TooLarge):
        pillarbox.publish_all(connection, [UserCreated("a"), UserCreated("x" * 2**20)])
    pillarbox.publish(connection, UserCreated("b"))
    connection.commit()
    assert len(rows(database)) == 1


@pytest.mark.parametrize(
    "text", ['{"a" : 1.50}', '"\\u0000 \\\\ % %s {} \'"', "[1e400,-0.0]", '"Zoë 📮"']
)
def test_inv_12_contexts_are_kept_byte_for_byte(connection: Any, database: str, text: str) -> None:
    event = RawEvent("any", text)
    pillarbox.publish(connection, event)
    pillarbox.publish_all(connection, [RawEvent("any", text), RawEvent("any", text)])
    connection.commit()
    assert rows(database) == [("any", text)] * 3


def test_columns_that_were_added_are_written(driver: str, own_database: str) -> None:
    connection = connect(driver, own_database)
    with psycopg.connect(own_database, autocommit=True) as admin:
        admin.execute('alter table pillarbox.event add "tenant %s" int, add tags text[]')
    columns = {"tenant %s": 7, "tags": ["a", "b"]}
    first = pillarbox.publish(connection, UserCreated("a"), columns=columns)
    many = [UserCreated("b"), RawEvent.from_event(UserCreated("c"), columns=columns)]
    ids = pillarbox.publish_all(connection, many)
    connection.commit()
    found = rows(own_database, 'event_id, "tenant %s", tags, environment')
    assert found == [
        (first, 7, ["a", "b"], "production"),
        (ids[0], None, None, "production"),
        (ids[1], 7, ["a", "b"], "production"),
    ]
    with pytest.raises(pillarbox.InvalidField, match="does not have a column"):
        pillarbox.publish(connection, UserCreated("a"), columns={"nowhere": 1})
    connection.close()


def test_outside_of_a_transaction_it_is_an_error(connection: Any, database: str) -> None:
    connection.autocommit = True
    with pytest.raises(pillarbox.NotInTransaction, match="no transaction is open") as caught:
        pillarbox.publish(connection, UserCreated("a"))
    assert caught.value.sqlstate is None
    run(connection, "begin")
    pillarbox.publish(connection, UserCreated("b"))
    run(connection, "commit")
    assert len(rows(database)) == 1


def test_an_aborted_transaction_is_an_error(connection: Any) -> None:
    with pytest.raises((psycopg.Error, psycopg2.Error)):
        run(connection, "select 1 / 0")
    with pytest.raises(pillarbox.TransactionAborted, match="roll it back"):
        pillarbox.publish(connection, UserCreated("a"))


def test_savepoints_keep_what_was_kept(connection: Any, database: str) -> None:
    pillarbox.publish(connection, UserCreated("a"))
    run(connection, "savepoint s")
    pillarbox.publish(connection, UserCreated("b"))
    run(connection, "rollback to savepoint s")
    connection.commit()
    assert rows(database) == [("user_created", '{"email":"a"}')]


def test_the_limit_of_the_database_is_named(connection: Any, database: str) -> None:
    refused = pytest.raises(pillarbox.TooLarge, match=r"has 2097152 bytes, the limit is 1048576")
    with refused as caught:
        text = json.dumps(SECRET + "x" * (2**21 - 2 - len(SECRET)))
        Publisher(event_bytes_max=2**22).publish(connection, RawEvent("any", text))
    assert caught.value.sqlstate == "23514"
    shows_nothing(caught.value)
    with pytest.raises(pillarbox.TransactionAborted):
        pillarbox.publish(connection, UserCreated("a"))


def test_json_that_only_python_takes_is_refused_without_showing_it(connection: Any) -> None:
    event = RawEvent("any", "{}")
    object.__setattr__(event, "event_context", f'{{"{SECRET}": nothing}}')
    with pytest.raises(pillarbox.NotJson) as caught:
        pillarbox.publish(connection, event)
    assert caught.value.sqlstate == "22P02"
    shows_nothing(caught.value)


def test_constraints_of_added_columns_are_refused_without_showing_it(
    driver: str, own_database: str
) -> None:
    connection = connect(driver, own_database)
    with psycopg.connect(own_database, autocommit=True) as admin:
        admin.execute("alter table pillarbox.event add tenant text check (tenant <> '')")
    with pytest.raises(pillarbox.InvalidField, match="SQLSTATE 23514") as caught:
        pillarbox.publish(connection, UserCreated(SECRET), columns={"tenant": ""})
    shows_nothing(caught.value)
    connection.close()


def shows_nothing(error: BaseException) -> None:
    """Neither the error nor what it holds may show the event."""
    assert error.__cause__ is None
    assert error.__context__ is None
    assert SECRET not in f"{error!r} {error.__dict__}"


def test_missing_rights_and_schema_name_the_remedy(
    driver: str, database: str, empty_database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"create role nobody_{driver} login")
        url = database.replace("postgres@", f"nobody_{driver}@")
        stranger = connect(driver, url)
        with pytest.raises(pillarbox.MissingRights, match="pillarbox grant"):
            pillarbox.publish(stranger, UserCreated("a"))
        stranger.rollback()
        admin.execute(f"grant pillarbox_publisher to nobody_{driver}")
        pillarbox.publish(stranger, UserCreated("a"))
        pillarbox.publish_all(stranger, [UserCreated("b"), UserCreated("c")])
        stranger.commit()
        stranger.close()
        assert len(rows(database)) == 3
    elsewhere = connect(driver, empty_database)
    with pytest.raises(pillarbox.OutboxMissing, match="pillarbox migrate"):
        pillarbox.publish(elsewhere, UserCreated("a"))
    elsewhere.close()


def test_a_read_only_transaction_is_named(connection: Any) -> None:
    run(connection, "set transaction read only")
    with pytest.raises(pillarbox.ReadOnly):
        pillarbox.publish(connection, UserCreated("a"))


def test_what_says_nothing_about_the_event_stays_the_drivers_error(
    connection: Any, driver: str, database: str
) -> None:
    module: Any = {"psycopg": psycopg, "psycopg2": psycopg2}[driver]
    with psycopg.connect(database) as other:
        other.execute("lock table pillarbox.event")
        run(connection, "set local lock_timeout = 1")
        with pytest.raises(module.errors.LockNotAvailable):
            pillarbox.publish(connection, UserCreated("a"))


def test_behind_a_pooler_in_transaction_mode(
    driver: str, database: str, urls: dict[str, str]
) -> None:
    pooled = urlsplit(urls["pgbouncer"])._replace(path=urlsplit(database).path).geturl()
    connections = [connect(driver, pooled) for _ in range(8)]
    for at, connection in enumerate(connections * 8):
        pillarbox.publish(connection, UserCreated(str(at)))
        connection.commit()
    for connection in connections:
        connection.close()
    assert len(rows(database)) == 64


def test_a_recorder_sees_what_goes_to_a_database(
    connection: Any, database: str, published_events: Recorder
) -> None:
    pillarbox.publish(connection, UserCreated("a"))
    connection.commit()
    published_events.assert_published(UserCreated("a"))
    assert len(rows(database)) == 1


def test_psycopg_transactions_and_pipelines(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        with connection.transaction():
            pillarbox.publish(connection, UserCreated("a"))
        with connection.pipeline():
            with pytest.raises(pillarbox.NotInTransaction):
                pillarbox.publish(connection, UserCreated("b"))
            with connection.transaction():
                pillarbox.publish(connection, UserCreated("c"))
                pillarbox.publish_all(connection, [UserCreated("d"), UserCreated("e")])
        with pytest.raises(pillarbox.TooLarge), connection.transaction():
            pillarbox.publish(connection, UserCreated("f"))
            Publisher(event_bytes_max=2**22).publish(connection, UserCreated("x" * 2**21))
    emails = [email for (email,) in rows(database, "event_context ->> 'email'")]
    assert emails == ["a", "c", "d", "e"]


def test_asynchronous_connections(database: str) -> None:
    async def scene() -> None:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            with pytest.raises(pillarbox.NotInTransaction):
                await pillarbox.apublish(connection, UserCreated("a"))
            async with connection.transaction():
                await pillarbox.apublish(connection, UserCreated("b"))
                await pillarbox.apublish_all(connection, [UserCreated("c"), UserCreated("d")])
            with pytest.raises(pillarbox.NotInTransaction):
                async with connection.pipeline():
                    await pillarbox.apublish(connection, UserCreated("e"))
            with pytest.raises(pillarbox.TooLarge):
                async with connection.transaction():
                    large = Publisher(event_bytes_max=2**22)
                    await large.apublish(connection, UserCreated("x" * 2**21))
            with pytest.raises(TypeError, match="cannot publish on"):
                pillarbox.publish(connection, UserCreated("f"))
            recorder = Recorder()
            await pillarbox.apublish(recorder, UserCreated("g"))
            recorder.assert_published(UserCreated("g"))

    asyncio.run(scene())
    emails = [email for (email,) in rows(database, "event_context ->> 'email'")]
    assert emails == ["b", "c", "d"]
