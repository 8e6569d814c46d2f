"""Two workers of ``terrace train`` under torchrun, which starts all of them again when one dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.stress.server import REPOSITORY

DEADLINE_SECONDS = 200.0
Words = list[str]


@contextmanager
def workers(words: Words, log: Path, restarts: int = 3) -> Iterator[subprocess.Popen[bytes]]:
    """Two, started again so often at most; nothing that it started is left, however it ended."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = ["--no-python", sys.executable, "-c", "from deploy.command import main; main()"]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [*torchrun, "--nproc-per-node", "2", "--max-restarts", str(restarts), *program,
             "train", *words],
            cwd=REPOSITORY, stderr=file, stdout=file,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        yield process
    finally:
        for each in [process, *descendants(process)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def kill_worker(process: subprocess.Popen[bytes], rank: int) -> None:
    """Kill -9 the worker of this rank."""
    for each in descendants(process):
        if each.environ().get("RANK") == str(rank):
            each.send_signal(signal.SIGKILL)
            return
    raise AssertionError(f"no worker has rank {rank}")


def wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    """Until something is so, while the workers live."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not ready():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            raise AssertionError(log.read_text()[-3000:])
