"""Adder: a worker that adds whole numbers to rows, so that each sum tells what was lost or doubled.

Rows begin with 0 and the optimizer is SGD with a rate of 1, so a row is the sum of all that was
pushed: exact in float32 up to 2**24. Some rows are one adder's own, others are everybody's.

As a program it is another process of a worker: it says what it did in lines of JSON.

Threads: one owner.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

import ps
from ps.client.client import Client, Step
from ps.client.identity import Identity
from ps.client.marker import Marker
from storage.errors import TerraceError

DIM, SHARED, OWN, BATCH = 8, 400, 8, 32
MOST_ADDERS = 4
SUMS = ps.Table("sums", dim=DIM, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())
KEYS = np.arange(1, SHARED + OWN * MOST_ADDERS + 1, dtype=np.uint64) * np.uint64(7919)
"""Everybody's, then those of each rank."""
Sums = NDArray[np.int64]
"""(keys, DIM)."""
Connect = Callable[[str, Sequence[tuple[str, Any]]], grpc.Channel]


class _Details(NamedTuple):
    """grpc.ClientCallDetails, which has no constructor."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class Hasty(grpc.UnaryUnaryClientInterceptor):
    """Gives calls that short a deadline: a call that is never answered is made again sooner."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """A channel, as `Client` wants one."""
        return grpc.intercept_channel(grpc.insecure_channel(address, options), self)

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        seconds = min(self._seconds, details.timeout or self._seconds)
        return continuation(
            _Details(
                details.method, seconds, details.metadata, details.credentials,
                details.wait_for_ready, details.compression,
            ),
            request,
        )  # fmt: skip


class Adder:
    """See the module's docstring. ``total`` is what all its pushes come to, ``pushes`` how many."""

    def __init__(
        self,
        addresses: str,
        rank: int = 0,
        world: int = 1,
        *,
        job: str = "sums",
        connect: Connect = grpc.insecure_channel,
        timeout_seconds: float = 120.0,
        push_bytes: int = 64 << 10,
    ) -> None:
        identity = Identity(job, rank, world, "round")
        self.client = Client(
            addresses.split(","), [SUMS], identity, connect, timeout_seconds=timeout_seconds,
            push_bytes=push_bytes,
        )  # fmt: skip
        self.marker = Marker(self.client)
        self.rank = rank
        self.total: Sums = np.zeros((len(KEYS), DIM), np.int64)
        self.pushes = 0
        self._rng = np.random.default_rng(rank)
        begin = SHARED + OWN * rank
        self._own = np.arange(begin, begin + OWN)

    def __enter__(self) -> Adder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()

    def push(self) -> None:
        """Add numbers to its own rows and to some of everybody's. Raises: as `Client`."""
        shared = self._rng.choice(SHARED, BATCH, replace=False)
        places = np.concatenate([self._own, shared])
        numbers = self._rng.integers(-3, 4, (len(places), DIM))
        uses = np.ones(len(places), np.int32)
        self.pushes += 1
        self.total[places] += numbers
        gradients = -numbers.astype(np.float32)
        self.client.push("sums", KEYS[places], gradients, uses, Step(1.0, self.pushes, 1.0))
        self.client.advance(self.pushes)

    def check_own(self) -> None:
        """What it pushed to its own rows is there, each number once. Raises: as `Client`."""
        self.client.flush()
        expected, found = self.total[self._own], np.empty((OWN, DIM), np.float32)
        for piece in self.client.pull("sums", KEYS[self._own], least=0, own=self.pushes):
            found[piece.indices] = piece.values
        assert np.array_equal(found, expected), (
            f"adder {self.rank}, push {self.pushes}: its rows differ by {found - expected}"
        )

    def shown(self) -> Sums:
        """What the rows are now."""
        found = np.empty((len(KEYS), DIM), np.float32)
        for piece in self.client.peek("sums", KEYS):
            found[piece.indices] = piece.values
        return found.astype(np.int64)


def main() -> None:
    """Push to this address, and say what was answered, until a push fails."""
    address, job = sys.argv[1:]
    with Adder(address, job=job) as adder:
        try:
            for number in itertools.count(1):
                adder.push()
                adder.client.flush()
                print(json.dumps({"pushed": number}), flush=True)
        except TerraceError as error:
            print(json.dumps({"error": type(error).__name__}), flush=True)


if __name__ == "__main__":
    main()
