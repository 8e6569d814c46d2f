"""Server: one that has died is started again on its folder and its port, and not for ever."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from deploy.server import Server
from storage.errors import UnavailableError
from tests.deploy.test_child import SECONDS, Heard


def kill_and_revive(server: Server) -> None:
    (child,) = (each for each in psutil.Process().children() if "serve" in each.cmdline())
    child.kill()
    deadline = time.monotonic() + SECONDS
    while not server.revive():
        assert time.monotonic() < deadline


def test_one_that_has_died_is_started_again_where_it_was(tmp_path: Path) -> None:
    heard = Heard()
    server = Server(tmp_path, (1, 2), ("--ram", "16MiB"), heard, restarts=1)
    try:
        server.terminate()
        server.end(SECONDS)  # both fine before the start
        server.start()
        server.wait()
        address = server.address
        assert server.revive() == 0
        kill_and_revive(server)
        server.wait()
        assert server.address == address
        with pytest.raises(UnavailableError, match="server 1: ended with code -9, and was started"):
            kill_and_revive(server)
    finally:
        server.terminate()
        server.end(SECONDS)
    assert ("terrace: server 1 ended with code -9; starting it again", True) in heard.lines
