"""Trainee: a small model that is trained, here or in a process of its own, to the same bits.

As a program it says in lines of JSON what it does: each step's loss, each call that failed, each
warning, with the time of `time.monotonic`, which all processes of a machine share. In the middle it
waits for a line.

Threads: one owner.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch

import ps
import worker

DIM, IDS, ROWS = 8, 200, 4000
ADS = ps.Table("ads", dim=DIM, optimizer=ps.RowWiseAdagrad(lr=0.1), init=ps.Uniform(0.1))
Losses = list[str]
"""In hexadecimal: every bit counts."""


def train(
    store: ps.Tables, steps: int, before: Callable[[int, Losses], None]
) -> tuple[Losses, int]:
    """Losses of all steps and the digest of all rows; ``before`` is called before each step."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    bag, linear = worker.EmbeddingBag(store, "ads"), torch.nn.Linear(DIM, 1)
    sparse, dense = worker.SparseOptimizer(store), torch.optim.SGD(linear.parameters(), lr=0.01)
    rng, offsets = np.random.default_rng(3), torch.arange(0, IDS, 10)
    losses: Losses = []
    for step in range(steps):
        before(step, losses)
        ids = torch.from_numpy(rng.zipf(1.2, IDS) % ROWS)
        dense.zero_grad()
        loss = (linear(bag(ids, offsets)) - 1).square().mean()
        loss.backward()
        sparse.step()
        dense.step()
        losses.append(loss.item().hex())
    return losses, store.digest()


def alone(folder: Path, steps: int) -> tuple[Losses, int]:
    """What it comes to in one process."""
    with ps.open(folder, [ADS], ram="64MiB", threads=1) as store:
        return train(store, steps, lambda step, losses: None)


def say(**what: Any) -> None:
    """One line, in one piece: several threads say something."""
    os.write(sys.stdout.fileno(), json.dumps({**what, "at": time.monotonic()}).encode() + b"\n")


class _Watch(grpc.UnaryUnaryClientInterceptor):
    """Tells of calls that fail."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        call = continuation(details, request)
        call.add_done_callback(self._tell)
        return call

    def _tell(self, call: Any) -> None:
        if call.code() is not grpc.StatusCode.OK:
            say(failed=f"{call.code().name}: {call.details()}")


class Watched(ps.Credentials):
    """Credentials whose channels tell of calls that fail."""

    def channel(self, target: str, options: Any = ()) -> grpc.Channel:
        """See `ps.Credentials.channel`."""
        return grpc.intercept_channel(super().channel(target, options), _Watch())


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(warning=record.getMessage())


def main() -> None:
    """Train over servers: their addresses, the steps, and the folder of certificates."""
    servers, steps, tls = sys.argv[1:]
    logging.getLogger("terrace.client").addHandler(_Warnings())

    def before(step: int, losses: Losses) -> None:
        if step:
            say(step=step, loss=losses[-1])
        if step == int(steps) // 2:
            say(half=step)
            sys.stdin.readline()

    credentials = Watched.in_folder(Path(tls))
    with ps.connect(servers, [ADS], ram="8MiB", threads=1, credentials=credentials) as store:
        losses, digest = train(store, int(steps), before)
    say(losses=losses, digest=digest)


if __name__ == "__main__":
    main()
