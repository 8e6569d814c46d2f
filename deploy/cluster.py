"""Cluster: servers and workers of one training on this machine, and what becomes of them.

Workers are torchrun's, which starts all of them again when one dies. A server that dies is started
again on its folder and its port. What they say is passed on, each line with its name.

Threads: one owner; those of the children.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from deploy.child import Child, Say
from storage.errors import UnavailableError

_MAIN = "from deploy.command import main; main()"
_START_SECONDS, _STOP_SECONDS, _LOOK_SECONDS = 120.0, 60.0, 0.02
_PREFIX = "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"


class Cluster:
    """See the module's docstring. options: of `terrace train`. say: is given all lines. restarts:
    of the workers, and of each server. restarted: servers that were started again.

    Raises: UnavailableError when a server does not come up.
    """

    def __init__(
        self,
        folder: Path,
        servers: int,
        workers: int,
        options: Sequence[str],
        say: Say,
        *,
        server_options: Sequence[str],
        restarts: int,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.restarted = 0
        self._say, self._stopping = say, False
        self._workers: Child | None = None
        self._servers = [
            _Server(folder, (number, servers), server_options, say, restarts)
            for number in range(servers)
        ]
        try:
            for server in self._servers:
                server.start()
            for server in self._servers:
                server.wait()
            self._workers = self._torchrun(folder, workers, options, restarts)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def look(self) -> int | None:
        """Start dead servers again; the exit code of the workers, None while they train.

        Raises: UnavailableError when a server has died too often.
        """
        assert self._workers is not None
        code = self._workers.code
        if code is None:
            self.restarted += sum(server.revive() for server in self._servers)
        return code

    def stop_workers(self, seconds: float, *, killed: Callable[[], bool]) -> None:
        """End them after their step, with a checkpoint. killed: whether to wait no longer."""
        assert self._workers is not None
        self._stopping = True
        self._workers.terminate()
        deadline = time.monotonic() + seconds
        while self._workers.code is None and time.monotonic() < deadline and not killed():
            time.sleep(_LOOK_SECONDS)
        self._workers.wait(0.0)

    def close(self) -> None:
        """End all, servers with all that they have made durable. Twice is fine."""
        if self._workers is not None:
            self._stopping = True
            if self._workers.code is None:
                self._workers.terminate()
            self._workers.wait(_STOP_SECONDS)
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            server.end(_STOP_SECONDS)

    def _torchrun(self, folder: Path, workers: int, options: Sequence[str], restarts: int) -> Child:
        rows = ["--store", str(folder / "store")]
        if self._servers:
            rows = ["--servers", ",".join(server.address for server in self._servers)]
        resume = [] if "--resume" in options else ["--resume"]
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(workers), "--max-restarts", str(restarts),
            "--tee", "3", "--log-dir", str(folder / "logs"), "--no-python",
            sys.executable, "-c", _MAIN, "train", *options, *rows, *resume,
        ]  # fmt: skip
        cores = max(1, (os.cpu_count() or 1) // workers)
        more = {_PREFIX: "worker ${rank}: ", "OMP_NUM_THREADS": str(cores)}
        return Child("", command, self._pass_on, {**more, **os.environ})

    def _pass_on(self, line: str, on_stderr: bool) -> None:
        """What torchrun itself says of being stopped is of no use to who has stopped it."""
        if line.startswith("worker ") or not self._stopping:
            self._say(line, on_stderr)


class _Server:
    """One shard's server, on the port that it got when it was started first."""

    def __init__(
        self, folder: Path, place: tuple[int, int], options: Sequence[str], say: Say, restarts: int
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
            sys.executable, "-c", _MAIN, "serve", "--dir", str(self._folder), "--listen",
            self.address, "--json", str(self._note), *self._options,
        ]  # fmt: skip
        self._child = Child(f"server {self._number}", command, self._say)

    def wait(self) -> None:
        """Until it serves."""
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
        """Start it again if it has died: how often it was."""
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
