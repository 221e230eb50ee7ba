"""The servers of these tests."""

from __future__ import annotations

import socket
import subprocess
from urllib.parse import urlsplit

import pytest
from testkit import built, servers


def test_servers_end_with_who_started_them() -> None:
    with servers("redis") as urls:
        port = urlsplit(urls["redis"]).port
        socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("names", [[], ["oracle"], ["pgbouncer"]])
def test_what_is_no_server_is_named(names: list[str]) -> None:
    done = subprocess.run([built("servers"), *names], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "name servers: postgres" in done.stderr
