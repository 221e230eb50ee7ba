"""Real servers for tests, started by the testkit of the workspace, and its programs."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[3]

#: How long a server may take to end when its input has ended; far above what it needs.
_STOP_DEADLINE_S = 60

#: Between two looks at a condition, and how long one may take to come true.
_POLL_S = 0.01
_DEADLINE_S = 60.0

T = TypeVar("T")


def built(name: str) -> Path:
    """A program of the workspace."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    program = ROOT / target / "debug" / name
    if not program.exists():
        raise FileNotFoundError(f"{program} is not built; run `make test-python`")
    return program


@contextmanager
def servers(*names: str) -> Iterator[dict[str, str]]:
    """Starts servers and gives their URLs by name. They end with this process, however it ends."""
    process = subprocess.Popen(
        [built("servers"), *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"servers {names} did not start: {process.wait(_STOP_DEADLINE_S)}")
    try:
        yield json.loads(line)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(_STOP_DEADLINE_S)


def pillarbox(*arguments: str, env: Mapping[str, str]) -> str:
    """Runs the program `pillarbox` and gives what it printed."""
    done = subprocess.run(
        [built("pillarbox"), *arguments],
        env={**os.environ, **env},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise AssertionError(f"pillarbox {arguments}: {done.returncode}: {done.stderr}")
    return done.stdout


def eventually(
    what: str, condition: Callable[[], T | None], *, deadline_s: float = _DEADLINE_S
) -> T:
    """Waits until ``condition`` gives something that is true."""
    started = time.monotonic()
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() - started > deadline_s:
            raise AssertionError(f"timed out after {deadline_s} s waiting for {what}")
        time.sleep(_POLL_S)
