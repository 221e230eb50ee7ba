"""Errors in logs: what, where, and no data."""

from __future__ import annotations

import sys

from stage import Stage

SECRET = "s3cret-of-the-row"

FAIL = f"""
import django, logging, structlog
django.setup()
from django.db import connection
try:
    with connection.cursor() as cursor:
        cursor.execute("select %s::int", ["{SECRET}"])
except Exception:
    logging.getLogger("elsewhere").exception("it failed")
    structlog.get_logger("ours").exception("again")
try:
    raise KeyError("a key")
except KeyError:
    logging.getLogger("elsewhere").exception("another")
print("end")
"""


def test_errors_are_logged_with_their_place_and_without_data(shared: Stage) -> None:
    env = {"DJANGO_SETTINGS_MODULE": "sample.settings"}
    process = shared.start("failing", sys.executable, "-c", FAIL, **env)
    process.says("end")
    failed, again, another = process.lines()
    for line in (failed, again):
        assert line["error"] == "DataError (SQLSTATE 22P02)"
        assert ":" in line["at"]
    assert another["error"] == "KeyError('a key')"
    assert SECRET not in process.log
    assert failed["level"] == "error"
    text = shared.start("failing", sys.executable, "-c", FAIL, **env, LOG_FORMAT="text")
    text.says("end")
    assert "DataError (SQLSTATE 22P02)" in text.log
    assert SECRET not in text.log
