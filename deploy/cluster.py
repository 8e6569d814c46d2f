"""Cluster: servers and workers of one training on this machine, and what becomes of them.

Workers are torchrun's, which starts all of them again when one dies. A server that dies is started
again on its folder and its port. What they say is passed on, each line with its name.

Threads: one owner; those of the children.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from deploy.child import Child, Say
from deploy.served import Served
from deploy.server import MAIN

_STOP_SECONDS, _LOOK_SECONDS = 60.0, 0.02
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
        self._servers = Served(folder, servers, server_options, say, restarts=restarts)
        try:
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
            self.restarted += self._servers.revive()
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
        self._servers.close()

    def _torchrun(self, folder: Path, workers: int, options: Sequence[str], restarts: int) -> Child:
        rows = ["--store", str(folder / "store")]
        if self._servers.ports:
            rows = ["--servers", self._servers.addresses]
        resume = [] if "--resume" in options else ["--resume"]
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(workers), "--max-restarts", str(restarts),
            "--tee", "3", "--log-dir", str(folder / "logs"), "--no-python",
            sys.executable, "-c", MAIN, "train", *options, *rows, *resume,
        ]  # fmt: skip
        cores = max(1, (os.cpu_count() or 1) // workers)
        more = {_PREFIX: "worker ${rank}: ", "OMP_NUM_THREADS": str(cores)}
        return Child("", command, self._pass_on, {**more, **os.environ})

    def _pass_on(self, line: str, on_stderr: bool) -> None:
        """What torchrun itself says of being stopped is of no use to who has stopped it."""
        if line.startswith("worker ") or not self._stopping:
            self._say(line, on_stderr)
