"""Server: a shard's server as a child process of this one, started again where it was.

Threads: one owner; those of the child.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.child import Child, Say
from storage.errors import UnavailableError

MAIN = "from deploy.command import main; main()"
"""The program of every ``terrace`` that this one starts."""
_START_SECONDS, _LOOK_SECONDS = 120.0, 0.02


class Server:
    """Shard ``place[0]`` of ``place[1]``, with its rows in a folder of its own in ``folder``.

    options: of ``terrace serve``. say: is given its lines. restarts: how often it is revived. port:
    0 until it serves first; the same ever after.
    """

    def __init__(
        self,
        folder: Path,
        place: tuple[int, int],
        options: Sequence[str],
        say: Say,
        *,
        restarts: int = 0,
    ) -> None:
        self.port = 0
        self._number, self._say, self._left = place[0], say, restarts
        self._note = folder / f"server-{place[0]}.json"
        self._folder = folder / f"{place[0]}-of-{place[1]}"
        self._options = ["--shard", f"{place[0]}/{place[1]}", *options]
        self._child: Child | None = None

    @property
    def address(self) -> str:
        """As clients take it."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and do not wait."""
        self._note.unlink(missing_ok=True)
        command = [
            sys.executable, "-c", MAIN, "serve", "--dir", str(self._folder), "--listen",
            self.address, "--json", str(self._note), *self._options,
        ]  # fmt: skip
        self._child = Child(f"server {self._number}", command, self._say)

    def wait(self) -> None:
        """Until it serves. Raises: UnavailableError when it does not come up."""
        assert self._child is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._child.code is None:
            try:
                self.port = int(json.loads(self._note.read_text())["port"])
                return
            except (FileNotFoundError, ValueError):
                time.sleep(_LOOK_SECONDS)
        raise UnavailableError(
            f"server {self._number}: expected it to serve within {_START_SECONDS:.0f} s; see what "
            f"it said"
        )

    def revive(self) -> int:
        """Start it again if it has died: how often it was. Raises: UnavailableError when it has
        died too often.
        """
        assert self._child is not None
        code = self._child.code
        if code is None:
            return 0
        self._child.wait(0.0)
        if not self._left:
            raise UnavailableError(
                f"server {self._number}: ended with code {code}, and was started again as often as "
                f"--max-restarts allows; see what it said"
            )
        self._left -= 1
        self._say(f"terrace: server {self._number} ended with code {code}; starting it again", True)
        self.start()
        return 1

    def terminate(self) -> None:
        """SIGTERM."""
        if self._child is not None:
            self._child.terminate()

    def end(self, seconds: float) -> None:
        """Wait for its end."""
        if self._child is not None:
            self._child.wait(seconds)
