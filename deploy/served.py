"""Served: shard servers as child processes, for benchmarks and for clusters on one machine.

Threads: one owner. Children end with the object, or are killed if they do not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from storage.errors import UnavailableError

_MAIN = "from deploy.command import main; main()"
_START_SECONDS, _STOP_SECONDS, _LOOK_SECONDS = 120.0, 30.0, 0.02


class Served:
    """``shards`` servers on ports of the system's choice, each with a folder in ``folder``.

    options: of ``terrace serve``, for all of them. quiet: what they say is thrown away.

    Raises: UnavailableError when one does not come up.
    """

    def __init__(
        self, folder: Path, shards: int, options: Sequence[str] = (), *, quiet: bool = True
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._children: list[subprocess.Popen[bytes]] = []
        self._notes = [folder / f"shard-{shard}.json" for shard in range(shards)]
        try:
            for shard, note in enumerate(self._notes):
                note.unlink(missing_ok=True)
                command = [
                    sys.executable, "-c", _MAIN, "serve", "--dir", str(folder / f"shard-{shard}"),
                    "--shard", f"{shard}/{shards}", "--listen", "127.0.0.1:0", "--json", str(note),
                    *options,
                ]  # fmt: skip
                to = subprocess.DEVNULL if quiet else None
                self._children.append(subprocess.Popen(command, stderr=to))
            self.ports = [self._await(shard) for shard in range(shards)]
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> str:
        """As `ps.connect` takes them."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop all, and wait for them. Twice is fine."""
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        for child in self._children:
            try:
                child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(_STOP_SECONDS)

    def _await(self, shard: int) -> int:
        """The port of a shard, once it serves."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._children[shard].poll() is None:
            try:
                return int(json.loads(self._notes[shard].read_text())["port"])
            except (FileNotFoundError, ValueError):
                time.sleep(_LOOK_SECONDS)
        raise UnavailableError(
            f"shard {shard}: expected a server within {_START_SECONDS:.0f} s, got none; run its "
            f"terrace serve by hand to see why"
        )
