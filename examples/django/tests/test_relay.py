"""The call of `pillarbox relay --once`, by each way it can end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from stage import Stage
from testkit import built, eventually

RUN = """
import django
django.setup()
from django.conf import settings
from sample import relay
try:
    print("outcome:", relay.once(settings.RELAY_PROGRAM, time_limit_s=settings.RELAY_TIME_LIMIT_S))
except relay.DeliveryFailed as error:
    print("failed:", error)
"""


def run(stage: Stage, **env: str) -> str:
    process = stage.start(
        "call", sys.executable, "-c", RUN, DJANGO_SETTINGS_MODULE="sample.settings", **env
    )
    return process.says(r"(?m)^(outcome|failed): .*$").group(0)


def test_it_delivers(shared: Stage) -> None:
    assert run(shared) == "outcome: delivered"


def test_a_server_that_is_away_is_tried_again_by_the_next_call(shared: Stage) -> None:
    assert run(shared, DATABASE_URL="postgresql://postgres@127.0.0.1:1/x") == "outcome: away"


def test_another_relay_is_no_failure(shared: Stage) -> None:
    relay = shared.start("relay", str(built("pillarbox")), "relay", PILLARBOX_CONSOLE__LISTEN="off")
    relay.says("relay starts")

    def is_active() -> bool:
        status = json.loads(shared.pillarbox("status", "--json"))
        return bool(status["sinks"][0]["state"] == "running")

    eventually("the relay to be active", is_active)
    assert run(shared) == "outcome: active_elsewhere"
    relay.stop()


def test_what_somebody_has_to_mend_fails(shared: Stage) -> None:
    found = run(shared, PILLARBOX_SINKS__CLICKHOUSE__TABLE="elsewhere")
    assert found.startswith("failed: error: ")


def test_a_call_that_takes_too_long_is_ended(shared: Stage, tmp_path: Path) -> None:
    slow = tmp_path / "pillarbox"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    assert run(shared, PILLARBOX=str(slow), RELAY_TIME_LIMIT_S="0.2") == "outcome: timed_out"


@pytest.mark.parametrize("code", [1, 2])
def test_other_codes_fail(shared: Stage, tmp_path: Path, code: int) -> None:
    program = tmp_path / "pillarbox"
    program.write_text(f"#!/bin/sh\necho 'error: wrong' >&2\nexit {code}\n")
    program.chmod(0o755)
    assert run(shared, PILLARBOX=str(program)) == "failed: error: wrong"
