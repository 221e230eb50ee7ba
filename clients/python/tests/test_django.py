"""Publishing in `transaction.atomic()`, and the fixture in each kind of test that Django has."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings
from testkit import ROOT

import pillarbox
import pillarbox.django
from pillarbox import Recorder

SECRET = "s3cret-of-the-event"


@dataclasses.dataclass
class UserCreated:
    email: str


def emails(using: str = "default") -> list[str]:
    with connections[using].cursor() as cursor:
        cursor.execute("select event_context ->> 'email' from pillarbox.event order by tx, id")
        return [email for (email,) in cursor.fetchall()]


def empty() -> None:
    with connection.cursor() as cursor:
        cursor.execute("truncate pillarbox.event")


@pytest.mark.django_db(transaction=True)
class TestTransactions:
    @pytest.fixture(autouse=True)
    def _empty(self) -> None:
        empty()

    def test_inv_1_an_event_shares_the_fate_of_its_block(self) -> None:
        with transaction.atomic():
            pillarbox.django.publish(UserCreated("a"))
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                pillarbox.django.publish(UserCreated("b"))
                raise ZeroDivisionError
            pillarbox.django.publish_all([UserCreated("c"), UserCreated("d")])
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            pillarbox.django.publish(UserCreated("e"))
            raise ZeroDivisionError
        assert emails() == ["a", "c", "d"]

    def test_outside_of_atomic_it_is_an_error(self) -> None:
        with pytest.raises(pillarbox.NotInTransaction, match=r"atomic\(using='default'\)"):
            pillarbox.django.publish(UserCreated("a"))
        assert emails() == []

    def test_without_autocommit_a_transaction_is_open(self, published_events: Recorder) -> None:
        transaction.set_autocommit(False)
        try:
            pillarbox.django.publish(UserCreated("a"))
            transaction.commit()
            pillarbox.django.publish(UserCreated("b"))
            transaction.rollback()
        finally:
            transaction.set_autocommit(True)
        assert emails() == ["a"]
        # Django cannot tell what became of these.
        assert len(published_events) == 2

    def test_a_refusal_marks_the_block_for_rollback(self) -> None:
        with override_settings(PILLARBOX={"EVENT_BYTES_MAX": 2**22}), transaction.atomic():
            pillarbox.django.publish(UserCreated("a"))
            with pytest.raises(pillarbox.TooLarge) as caught:
                pillarbox.django.publish(UserCreated(SECRET + "x" * 2**21))
            assert SECRET not in f"{caught.value!r}"
            assert (caught.value.__cause__, caught.value.__context__) == (None, None)
            with pytest.raises(pillarbox.TransactionAborted):
                pillarbox.django.publish(UserCreated("b"))
        assert emails() == []

    def test_an_event_refused_before_it_is_sent_leaves_the_block_as_it_was(self) -> None:
        with transaction.atomic():
            with pytest.raises(pillarbox.NotJson):
                pillarbox.django.publish(UserCreated("\0"))
            pillarbox.django.publish(UserCreated("a"))
        assert emails() == ["a"]

    def test_parameters_do_not_reach_djangos_log(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("DEBUG")
        connection.force_debug_cursor = True
        try:
            with transaction.atomic():
                pillarbox.django.publish(UserCreated(SECRET))
        finally:
            connection.force_debug_cursor = False
        assert SECRET not in caplog.text
        assert SECRET not in str(connection.queries)
        assert "event published, if the transaction commits" in caplog.text

    def test_the_recorder_sees_what_is_kept(self, published_events: Recorder) -> None:
        with transaction.atomic():
            pillarbox.django.publish(UserCreated("a"))
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                pillarbox.django.publish(UserCreated("b"))
                raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            pillarbox.django.publish(UserCreated("c"))
            raise ZeroDivisionError
        assert published_events.of(UserCreated) == [UserCreated("a")]
        assert emails() == ["a"]

    def test_a_lost_connection_is_djangos_error(self) -> None:
        from django.db import OperationalError

        with pytest.raises(OperationalError), transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("select pg_backend_pid()")
                pid = cursor.fetchone()[0]
            with connections["default"].copy().cursor() as other:
                other.execute("select pg_terminate_backend(%s, 5000)", [pid])
                other.connection.close()
            pillarbox.django.publish(UserCreated("a"))
        connection.close()


@pytest.mark.django_db
class TestInsideOfATestsTransaction:
    def test_the_tests_own_transaction_does_not_count(self, published_events: Recorder) -> None:
        with pytest.raises(pillarbox.NotInTransaction, match="TestCase"):
            pillarbox.django.publish(UserCreated("a"))
        published_events.assert_nothing_published()

    def test_it_counts_where_each_request_has_one(
        self, published_events: Recorder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
        pillarbox.django.publish(UserCreated("a"))
        published_events.assert_published(UserCreated("a"))

    def test_what_is_rolled_back_is_not_shown(self, published_events: Recorder) -> None:
        with transaction.atomic():
            pillarbox.django.publish(UserCreated("a"))
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            pillarbox.django.publish(UserCreated("b"))
            raise ZeroDivisionError
        assert published_events.of(UserCreated) == [UserCreated("a")]
        assert "a" in emails()


def test_without_a_database_it_only_records(published_events: Recorder) -> None:
    pillarbox.django.publish(UserCreated("a"))
    pillarbox.django.publish_all([UserCreated("b")])
    assert published_events.of(UserCreated) == [UserCreated("a"), UserCreated("b")]


@pytest.mark.usefixtures("published_events")
class SimpleTests(SimpleTestCase):
    def test_without_a_database_it_only_records(self) -> None:
        pillarbox.django.publish(UserCreated("a"))


@pytest.mark.usefixtures("published_events")
class Tests(TestCase):
    databases = {"default", "other"}

    def test_with_a_database_it_needs_a_transaction(self) -> None:
        with pytest.raises(pillarbox.NotInTransaction):
            pillarbox.django.publish(UserCreated("a"))
        with transaction.atomic():
            pillarbox.django.publish(UserCreated("a"))
        with transaction.atomic(), pytest.raises(pillarbox.NotInTransaction, match="TestCase"):
            pillarbox.django.publish(UserCreated("a"), using="other")
        with transaction.atomic("other"):
            pillarbox.django.publish(UserCreated("b"), using="other")
        assert emails("other") == ["b"]

    def test_recording_by_hand(self) -> None:
        with pillarbox.recording() as events, transaction.atomic():
            pillarbox.django.publish(UserCreated("a"))
        events.assert_published(UserCreated("a"))


@pytest.mark.usefixtures("published_events")
class TransactionTests(TransactionTestCase):
    def test_with_a_database_it_needs_a_transaction(self) -> None:
        with pytest.raises(pillarbox.NotInTransaction):
            pillarbox.django.publish(UserCreated("a"))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"ENVIROMENT": "x"}, "unknown key 'ENVIROMENT'"),
        ({"PUBLISHERS": "app"}, "not a list"),
        ({"PUBLISHERS": [1]}, "not a list"),
    ],
)
def test_wrong_settings_are_named(setting: dict[str, Any], reason: str) -> None:
    from pillarbox.django import conf

    with override_settings(PILLARBOX=setting), pytest.raises(ImproperlyConfigured, match=reason):
        conf.publishers()


def test_settings_are_those_of_every_event(published_events: Recorder) -> None:
    with override_settings(PILLARBOX={"ENVIRONMENT": "staging", "EVENT_BYTES_MAX": 20}):
        pillarbox.django.publish(UserCreated("a"))
        with pytest.raises(pillarbox.TooLarge):
            pillarbox.django.publish(UserCreated("a" * 20))
    assert published_events.events[0].environment == "staging"


def test_other_databases_are_refused_by_name() -> None:
    sqlite = mock.Mock(in_atomic_block=True, vendor="sqlite", alias="files")
    with pytest.raises(pillarbox.PillarboxError, match="'files' is sqlite"):
        pillarbox.publish(sqlite, UserCreated("a"))


OVER_PSYCOPG2 = """
import sys
sys.modules["psycopg"] = None
import dataclasses, django, pillarbox, pillarbox.django
from django.conf import settings
from urllib.parse import urlsplit
server = urlsplit(sys.argv[1])
settings.configure(
    INSTALLED_APPS=["pillarbox.django"],
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": server.path[1:],
        "USER": "postgres", "HOST": server.hostname, "PORT": server.port}},
)
django.setup()
from django.core.management import call_command
from django.db import connection, transaction

@dataclasses.dataclass
class UserCreated:
    email: str

call_command("migrate", verbosity=0)
call_command("pillarbox_check")
with transaction.atomic():
    pillarbox.django.publish(UserCreated("a"))
    pillarbox.django.publish_all([UserCreated("b"), UserCreated("100 %s {}")])
try:
    with transaction.atomic():
        pillarbox.Publisher(event_bytes_max=2**22).publish(connection, UserCreated("x" * 2**21))
except pillarbox.TooLarge:
    pass
with connection.cursor() as cursor:
    cursor.execute("select event_context ->> 'email' from pillarbox.event order by tx, id")
    assert cursor.fetchall() == [("a",), ("b",), ("100 %s {}",)], cursor.fetchall()
assert type(connection.connection).__module__.startswith("psycopg2")
print("done")
"""


def test_django_on_psycopg2(empty_database: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OVER_PSYCOPG2, empty_database],
        env={**os.environ, "PYTHONPATH": str(ROOT / "clients/python/src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")
