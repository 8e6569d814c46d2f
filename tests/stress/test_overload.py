"""Four times what a shard can do is offered: it does nearly as much as before, refuses the rest.

Calls are offered at a steady rate, whatever becomes of them (open loop), each with a deadline of
two seconds. What counts as done is what was answered in time.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

import ps
from ps.client.client import PIECE_BYTES, Client
from ps.client.identity import Identity
from ps.client.link import OPTIONS
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame
from tests.stress.server import Server

TABLE = ps.Table("rows", dim=64, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())
STORED = 60_000
PULLED = PIECE_BYTES // (4 * TABLE.dim + 16)  # as clients cut their pulls
DEADLINE_SECONDS = 2.0
PATH = "/terrace.v1.Shard/Pull"
RAM = 512 << 20
# UNAVAILABLE: its deadline passed before it had its turn.
ALLOWED = {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE"}


class Load:
    """Pulls of pieces of 4 MiB over connections of its own, and what became of them."""

    def __init__(self, client: Client, address: str) -> None:
        rng = np.random.default_rng(0)
        self._channels = [grpc.insecure_channel(address, OPTIONS) for _ in range(4)]
        self._calls = [channel.unary_unary(PATH) for channel in self._channels]
        self._requests = []
        for _ in range(16):
            keys = rng.choice(STORED, PULLED, replace=False).astype(np.uint64)
            request = wire.PullRequest(table="rows", rows=PULLED)
            request.session.CopyFrom(client.identity.session)
            self._requests.append(Frame(request, keys).pack())
        self._changed = threading.Condition()
        self._under_way = self._number = 0
        self.results: list[tuple[grpc.StatusCode, float]] = []

    def close(self) -> None:
        """Let go of the connections."""
        for channel in self._channels:
            channel.close()

    def send(self) -> None:
        """Begin one call."""
        self._number += 1
        began = time.monotonic()
        call = self._calls[self._number % len(self._calls)]
        with self._changed:
            self._under_way += 1
        future = call.future(
            self._requests[self._number % len(self._requests)], timeout=DEADLINE_SECONDS
        )
        future.add_done_callback(lambda done: self._note(done, began))

    def closed_loop(self, seconds: float, window: int) -> float:
        """Answers a second with so many calls under way at any time."""
        self.results, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            with self._changed:
                assert self._changed.wait_for(lambda: self._under_way < window, 60)
            self.send()
        self._drain()
        return self.done / seconds

    def open_loop(self, seconds: float, rate: float) -> float:
        """Answers a second when ``rate`` calls are begun each second."""
        self.results, began = [], time.monotonic()
        pause = threading.Event()
        for number in range(int(seconds * rate)):
            pause.wait(max(0.0, began + number / rate - time.monotonic()))
            self.send()
        spent = max(seconds, time.monotonic() - began)
        self._drain()
        return self.done / spent

    @property
    def done(self) -> int:
        """Calls that were answered."""
        return sum(code is grpc.StatusCode.OK for code, _ in self.results)

    def seconds(self, code: grpc.StatusCode) -> float:
        """Median time to this outcome."""
        taken = [seconds for found, seconds in self.results if found is code]
        return statistics.median(taken) if taken else 0.0

    def _note(self, future: Any, began: float) -> None:
        seconds = time.monotonic() - began
        with self._changed:
            self._under_way -= 1
            self.results.append((future.code(), seconds))
            self._changed.notify_all()

    def _drain(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: not self._under_way, 60)


@pytest.mark.parametrize(
    "seconds", [0.4, pytest.param(8.0, marks=pytest.mark.stress)], ids=["short", "long"]
)
def test_what_is_too_much_is_refused_and_the_rest_is_done(tmp_path: Path, seconds: float) -> None:
    with Server(tmp_path, "--ram", str(RAM)) as server:
        client = Client([server.address], [TABLE], Identity("load"), grpc.insecure_channel)
        load = Load(client, server.address)
        try:
            keys = np.arange(STORED, dtype=np.uint64)
            client.write("rows", keys, np.ones((STORED, TABLE.dim), np.float32))
            process = psutil.Process(server.pid)
            load.closed_loop(seconds, 8)  # warms up
            peak = load.closed_loop(seconds, 8)
            said: list[str] = []
            for times in (1, 2, 4):
                rate = load.open_loop(seconds, times * peak)
                codes = Counter(code.name for code, _ in load.results)
                refused = load.seconds(grpc.StatusCode.RESOURCE_EXHAUSTED)
                said.append(
                    f"{times}x: {rate:.0f}/s of {peak:.0f} ({rate / peak:.2f}), {dict(codes)}, "
                    f"answered after {1e3 * load.seconds(grpc.StatusCode.OK):.0f} ms, refused "
                    f"after {1e3 * refused:.0f}, RSS {process.memory_info().rss / 2**20:.0f} MiB"
                )
                assert codes.keys() <= ALLOWED
                assert load.done
            print("\n".join(said))
            # As ever, afterwards.
            assert load.closed_loop(seconds, 8) > 0
            assert all(code is grpc.StatusCode.OK for code, _ in load.results)
        finally:
            load.close()
            client.close()
