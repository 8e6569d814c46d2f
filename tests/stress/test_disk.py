"""A shard's disk that fills up under pushes: reads go on, writes wait for room, nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

import ps
from ps.client.client import Client, Step
from ps.client.identity import Identity
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame
from ps.wire.status import error_of
from storage.errors import DiskFullError
from tests.stress.server import Server

DISK_BYTES, DEADLINE_SECONDS, ROWS, BATCH = 64 << 20, 60.0, 40_000, 1000
TABLE = ps.Table("big", dim=64, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())
KEYS = np.arange(ROWS, dtype=np.uint64)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own of 64 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)],
        capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Pushing(threading.Thread):
    """Adds 1 to all rows again and again, a batch at a time; ``pushed`` batches were answered."""

    def __init__(self, address: str) -> None:
        super().__init__(name="pushing")
        self.client = connect(address, "push")
        self.pushed = 0
        self.moved = threading.Event()
        self.enough = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        gradients, uses = np.full((BATCH, 64), -1, np.float32), np.ones(BATCH, np.int32)
        try:
            while not self.enough.is_set():
                begin = self.pushed * BATCH % ROWS
                step = self.pushed + 1
                keys = KEYS[begin : begin + BATCH]
                self.client.push("big", keys, gradients, uses, Step(1.0, step, 1.0))
                self.client.advance(step)
                self.client.flush()
                self.pushed = step
                self.moved.set()
        except BaseException as error:  # told by the test
            self.error = error
        finally:
            self.client.close()

    def counts(self) -> np.ndarray:
        """What each row has to be."""
        whole, rest = divmod(self.pushed * BATCH, ROWS)
        return whole + (np.arange(ROWS) < rest)

    def moves(self, seconds: float) -> bool:
        """Whether a push is answered within so many seconds."""
        self.moved.clear()
        return self.moved.wait(seconds)


def connect(address: str, job: str) -> Client:
    return Client(
        [address], [TABLE], Identity(job), grpc.insecure_channel, timeout_seconds=DEADLINE_SECONDS
    )


def fill(ballast: Path) -> None:
    """Leave 2 MiB of the disk, while somebody writes to it."""
    with open(ballast, "wb") as file:
        size = 0
        while (more := shutil.disk_usage(ballast.parent).free - (2 << 20)) > 0:
            size += min(more, 1 << 20)
            os.posix_fallocate(file.fileno(), 0, size)


def shown(client: Client) -> np.ndarray:
    values = np.empty((ROWS, 64), np.float32)
    for piece in client.peek("big", KEYS):
        values[piece.indices] = piece.values
    assert (values == values[:, :1]).all()
    return values[:, 0].astype(np.int64)


def refused(client: Client) -> tuple[grpc.StatusCode, type]:
    """How a write is refused."""
    request = wire.WriteRequest(table="big", rows=BATCH, width=64, sequence=1)
    request.session.CopyFrom(client.identity.session)
    request.keys = KEYS[:BATCH].tobytes()
    frame = Frame(request, np.zeros((BATCH, 64), np.float32))
    call = client.links[0].start("Write", frame.pack(), 10.0)
    failure = call.exception()
    return call.code(), type(error_of("shard", failure))


@pytest.mark.parametrize(
    ("durability", "killed"),
    [
        pytest.param("strict", True, marks=pytest.mark.stress),
        pytest.param("strict", False, marks=pytest.mark.stress),
        pytest.param("interval", True, marks=pytest.mark.stress),
        pytest.param("interval", False, marks=pytest.mark.stress),
    ],
)
def test_a_full_disk_stops_writes_alone_and_room_ends_that(
    tmp_path: Path, small_disk: Path, durability: str, killed: bool
) -> None:
    ballast = small_disk / "ballast"
    options = ("--durability", durability, "--interval", "0.2", "--ram", "24MiB")
    with Server(
        tmp_path, *options, "--metrics", "127.0.0.1:0", store=small_disk / "store"
    ) as server:
        reader = connect(server.address, "read")
        pushing = Pushing(server.address)
        pushing.start()
        try:
            assert pushing.moves(DEADLINE_SECONDS)
            fill(ballast)
            while pushing.moves(5.0):
                assert pushing.error is None and pushing.is_alive()
            assert pushing.error is None
            assert server.ready() == "disk-full"
            assert refused(reader) == (grpc.StatusCode.RESOURCE_EXHAUSTED, DiskFullError)
            counts = pushing.counts()
            assert np.isin(shown(reader) - counts, (0, 1)).all()  # one may be half answered
            if killed:
                server.kill()
            ballast.unlink()
            if killed:
                server.start()
            freed = time.monotonic()
            assert pushing.moves(DEADLINE_SECONDS), pushing.error
            seconds = time.monotonic() - freed
            print(f"{durability}: pushed again {seconds:.2f} s after room was made")
            assert seconds <= 5
            assert server.ready() == "serving"
            assert server.starts == 1 + killed
        finally:
            pushing.enough.set()
            pushing.join()
            if pushing.error is not None:
                print(server.said[-4000:])
        assert pushing.error is None
        assert np.array_equal(shown(reader), pushing.counts())
        reader.close()
