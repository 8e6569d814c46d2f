"""A shard that was killed serves again soon, however many rows it has: it reads none of them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

import ps
from ps.client.client import Client, Step
from ps.client.identity import Identity
from storage.rows import Rows
from tests.stress.server import Server

TABLE = ps.Table("rows", dim=64, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())
BATCH, ROW_BYTES = 1 << 16, 4 * 64 + 12


def fill(folder: Path, rows: int, ram: str) -> None:
    """Rows whose floats are their keys, made durable."""
    with ps.open(folder, [TABLE], ram=ram, durability="checkpoint") as store:
        for begin in range(0, rows, BATCH):
            keys = np.arange(begin, min(begin + BATCH, rows), dtype=np.uint64)
            values = np.repeat(keys.astype(np.float32)[:, None], TABLE.dim, axis=1)
            steps, dirty = np.ones(len(keys), np.uint32), np.ones(len(keys), np.bool_)
            store.put("rows", Rows(keys, values, steps, dirty))


def connect(server: Server) -> Client:
    return Client([server.address], [TABLE], Identity("job"), grpc.insecure_channel)


@pytest.mark.parametrize(
    ("size", "ram"),
    [(100 << 20, "64MiB"), pytest.param(10 << 30, "3GiB", marks=pytest.mark.stress)],
    ids=["100 MiB", "10 GiB"],
)
def test_a_killed_shard_serves_again_soon(tmp_path: Path, size: int, ram: str) -> None:
    free = shutil.disk_usage(tmp_path).free
    if free < 1.1 * size:
        pytest.skip(
            f"no room: {size / 2**30:.1f} GiB and a tenth are needed, {free / 2**30:.1f} free"
        )
    rows = size // ROW_BYTES
    began = time.monotonic()
    fill(tmp_path / "store", rows, ram)
    print(f"wrote {rows} rows in {time.monotonic() - began:.0f} s")
    keys = np.random.default_rng(1).choice(rows, 1000, replace=False).astype(np.uint64)
    expected = np.repeat(keys.astype(np.float32)[:, None] + 1, TABLE.dim, axis=1)
    with Server(tmp_path, "--ram", ram) as server:
        client = connect(server)
        gradients, uses = np.full((len(keys), TABLE.dim), -1, np.float32), np.ones(1000, np.int32)
        client.push("rows", keys, gradients, uses, Step(1.0, 1, 1.0))
        client.advance(1)
        client.flush()
        server.kill()
        began = time.monotonic()
        server.start()
        values = np.concatenate([piece.values for piece in client.peek("rows", keys)])
        seconds = time.monotonic() - began
        print(
            f"{size / 2**30:.1f} GiB: serves {server.started_seconds:.1f} s after its start, "
            f"{server.note['load_seconds']:.1f} s of that to load; rows read after {seconds:.1f}"
        )
        assert np.array_equal(values, expected)
        client.close()
