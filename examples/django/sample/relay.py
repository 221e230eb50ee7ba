"""Calls `pillarbox relay --once`.

Overlapping calls are safe: the relay of a sink holds a lock in PostgreSQL, and another one says so
and ends. So is ending a call at any moment: the next one settles what was in flight.
"""

from __future__ import annotations

import subprocess

import structlog

log = structlog.get_logger("sample.relay")

#: Exit codes of the program.
_DONE, _REFUSED, _UNREACHABLE = 0, 3, 4

_IS_ACTIVE = "another relay is active for this sink"

#: How long the program may take to end when it is asked to: it finishes the step at hand.
_GRACE_S = 30.0


class DeliveryFailed(Exception):
    """Somebody has to mend something; the message is that of the program."""


def once(program: str, *, time_limit_s: float) -> str:
    """Delivers what is committed. Says what came of it; raises where trying again does not help."""
    process = subprocess.Popen(  # noqa: S603
        [program, "relay", "--once", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=time_limit_s)
    except subprocess.TimeoutExpired:
        _end(process)
        log.warning("delivery ended by its time limit; the next one goes on", outcome="timed_out")
        return "timed_out"
    except BaseException:
        # The worker is told to stop.
        _end(process)
        raise
    last = err.strip().rpartition("\n")[2]
    if process.returncode == _DONE:
        log.info("delivered what is committed", outcome="delivered", sinks=out.split("\n")[:-1])
        return "delivered"
    if process.returncode == _REFUSED and _IS_ACTIVE in err:
        log.info("another relay delivers", outcome="active_elsewhere")
        return "active_elsewhere"
    if process.returncode == _UNREACHABLE:
        log.warning("a server is away; the next call tries again", outcome="away", error=last)
        return "away"
    # Not as an error: Sentry would report the line beside the exception.
    log.warning("delivery failed", outcome="failed", code=process.returncode, error=last)
    raise DeliveryFailed(last)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
