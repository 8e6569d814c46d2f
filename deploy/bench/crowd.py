"""Crowd: client processes that pull, or push, all at once: what shards do when no client limits it.

One process of Python takes in some 5 M rows/s, which is about what one shard gives out.

Run as ``python -m deploy.bench.crowd JSON``: one client of it, told what to do on its standard
input. Threads: one owner.
"""

from __future__ import annotations

import dataclasses
import json
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np

import ps
from ps.client.client import Client, Step
from ps.client.identity import Identity
from storage.errors import UnavailableError

_END_SECONDS, _LINE_SECONDS = 60.0, 120.0
_WARM_UP = 3


@dataclass(frozen=True)
class Task:
    """What one client does. addresses: of the shards. rows: of one pull or push, of ``stored`` with
    keys from 0. seconds: it goes on for.
    """

    addresses: str
    table: str
    dim: int
    rows: int
    stored: int
    seconds: float


class Crowd:
    """``clients`` processes, connected. Raises: UnavailableError when one does not come up."""

    def __init__(self, clients: int, task: Task) -> None:
        self._children = [
            subprocess.Popen(
                [sys.executable, "-m", "deploy.bench.crowd",
                 json.dumps({"number": number, **dataclasses.asdict(task)})],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for number in range(clients)
        ]  # fmt: skip
        try:
            self._hear()
        except BaseException:
            self.close()
            raise

    def rows_per_s(self, what: str) -> float:
        """Rows of all clients together. what: "pull" or "push"."""
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write(what + "\n")
            child.stdin.flush()
        return sum(map(float, self._hear()))

    def close(self) -> None:
        """End the processes. Twice is fine."""
        for child in self._children:
            child.kill()
            child.communicate(timeout=_END_SECONDS)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hear(self) -> list[str]:
        """A line of each; one that dies, or hangs, says an empty one."""
        lines = []
        for child in self._children:
            assert child.stdout is not None
            said = select.select([child.stdout], [], [], _LINE_SECONDS)[0]
            lines.append(child.stdout.readline().strip() if said else "")
        if not all(lines):
            raise UnavailableError(
                f"bench network: client {lines.index('')} of {len(lines)} ended or said nothing "
                f"for {_LINE_SECONDS:.0f} s; see above"
            )
        return lines


def main() -> None:
    """One client, until standard input ends."""
    told = json.loads(sys.argv[1])
    number = told.pop("number")
    task = Task(**told)
    table = ps.Table(task.table, dim=task.dim, optimizer=ps.RowWiseAdagrad())
    connect = ps.Credentials().channel
    client = Client(task.addresses.split(","), [table], Identity(f"crowd-{number}"), connect)
    rng = np.random.default_rng(number)
    chosen = [rng.choice(task.stored, task.rows, replace=False).astype(np.uint64) for _ in range(8)]
    gradients = np.full((task.rows, task.dim), 1e-3, np.float32)
    uses = np.ones(task.rows, np.int32)
    steps = 0

    def pull() -> None:
        for _ in client.pull(task.table, chosen[steps % 8], least=0, own=0):
            pass

    def push() -> None:
        client.push(task.table, chosen[steps % 8], gradients, uses, Step(0.01, steps, 1.0))
        client.advance(steps)
        client.flush()

    calls: dict[str, Callable[[], None]] = {"pull": pull, "push": push}
    try:
        print("ready", flush=True)
        for line in sys.stdin:
            call = calls[line.strip()]
            for _ in range(_WARM_UP):
                steps += 1
                call()
            began, first = time.perf_counter(), steps
            while time.perf_counter() < began + task.seconds:
                steps += 1
                call()
            done = (steps - first) * task.rows
            print(done / (time.perf_counter() - began), flush=True)
    finally:
        client.close()


if __name__ == "__main__":
    main()
