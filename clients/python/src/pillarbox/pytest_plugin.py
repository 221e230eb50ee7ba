"""The fixture ``published_events``; pytest finds it by itself where this package is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from pillarbox.recorder import Recorder, recording

#: What pytest-django gives a test that may use the database.
_DATABASE_FIXTURES = frozenset(
    (
        "db",
        "transactional_db",
        "django_db_reset_sequences",
        "django_db_serialized_rollback",
        "live_server",
    )
)


@pytest.fixture
def published_events(request: pytest.FixtureRequest) -> Iterator[Recorder]:
    """A :class:`pillarbox.Recorder` of everything that the test publishes, on any connection.

    In a test that may not use Django's database, ``pillarbox.django.publish`` only records, inside
    of a transaction or not.
    """
    with recording(has_database=_has_database(request)) as recorder:
        yield recorder


def _has_database(request: pytest.FixtureRequest) -> bool:
    testcases = sys.modules.get("django.test.testcases")
    case = getattr(request, "cls", None)
    if testcases is not None and isinstance(case, type):
        if issubclass(case, testcases.TransactionTestCase):
            return True
        if issubclass(case, testcases.SimpleTestCase):
            return bool(getattr(case, "databases", ()))
    if request.node.get_closest_marker("django_db") is not None:
        return True
    # Without pytest-django nothing keeps a test from the database.
    has_blocker = request.config.pluginmanager.hasplugin("django")
    return not has_blocker or not _DATABASE_FIXTURES.isdisjoint(request.fixturenames)
