"""`terrace serve` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from ps.wire.status import error_of
from tests.ps.serving import ROOT, SERVICE, Frame, unpacker, wait_for, wire

SECONDS = 60.0
_MAIN = "from deploy.command import main; main()"


@dataclass
class Process:
    """A shard's process. report: what it wrote to --json. channel: to it."""

    child: subprocess.Popen[str]
    file: Path
    report: dict[str, Any]
    channel: grpc.Channel
    place: Any = None

    def call(self, method: str, message: Any, array: Any = b"", seconds: float = 20.0) -> Any:
        """The answer. Raises: what the shard raised."""
        output = SERVICE.methods_by_name[method].output_type.name
        call = self.channel.unary_unary(f"/{SERVICE.full_name}/{method}")
        try:
            answer = call(Frame(message, array).pack(), timeout=seconds)
        except grpc.RpcError as error:
            raise error_of("shard", error) from error
        return unpacker(getattr(wire, output))(answer)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send the signal: exit code and standard error."""
        self.child.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Exit code and standard error, once it has ended."""
        _, said = self.child.communicate(timeout=SECONDS)
        return self.child.returncode, said


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`terrace serve` on a port of the system's choice."""
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, "serve", "--dir", str(folder), "--listen", "127.0.0.1:0",
         "--ram", "16MiB", "--threads", "1", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@contextmanager
def process_at(folder: Path, *words: str) -> Iterator[Process]:
    """A shard that serves; killed at the end if it still does."""
    file = folder.with_name(f"{folder.name}-{time.monotonic_ns()}.json")
    with start(folder, "--json", str(file), *words) as child:
        try:
            wait_for(lambda: (file.exists() and file.read_text().endswith("}\n")) or ended(child),
                     SECONDS)  # fmt: skip
            if child.poll() is not None:
                raise AssertionError(child.communicate()[1])
            report = json.loads(file.read_text())
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(f"127.0.0.1:{report['port']}", options) as channel:
                yield Process(child, file, report, channel)
        finally:
            if child.poll() is None:
                child.kill()
                child.communicate()


def ended(child: subprocess.Popen[str]) -> bool:
    """Whether it is no more."""
    return child.poll() is not None
