"""Hits are those of libCacheSim, exactly, on real traces.

Definitions are the same but for two: libCacheSim's slru lets go of rows on a use where the capacity
is no multiple of its four segments (so it is rounded down to one here), and its s3fifo refuses to
cache anything where the small queue has room for one (so there are no such sizes here).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.policies.belady import NEVER, make_belady, next_uses
from storage.policy import Policy
from storage.replay import Replay
from worker.data.trace import open_trace, read_all

PEERS = {
    "fifo": "FIFO", "lru": "LRU", "clock": "Clock", "lfu": "LFU", "sieve": "Sieve",
    "s3fifo": "S3FIFO", "slru": "SLRU", "2q": "TwoQ", "arc": "ARC", "belady": "Belady",
}  # fmt: skip
TRACES = {
    "web07.trace.xz": None, "web12.trace.xz": None, "cloudPhysicsIO.csv.gz": None,
    "OLTP.lis.zst": 150_000, "orm-busy.trace.xz": 150_000, "scarab-recs.trace.xz": 150_000,
}  # fmt: skip
SHARES = (0.01, 0.1, 0.5)


def write_oracle(path: Path, codes: np.ndarray, nexts: np.ndarray) -> None:
    """libCacheSim's binary format: time, key, size, number of the next request from 1 on."""
    kind = np.dtype([("time", "<u4"), ("key", "<u8"), ("size", "<u4"), ("next", "<i8")])
    records = np.zeros(len(codes), kind)
    records["time"], records["key"], records["size"] = np.arange(len(codes)), codes + 1, 1
    records["next"] = np.where(nexts == NEVER, np.iinfo(np.int64).max, nexts + 1)
    records.tofile(path)


def compare(folder: Path, scratch: Path, name: str, limit: int | None) -> None:
    peer: Any = pytest.importorskip("libcachesim")
    keys = read_all(open_trace(str(folder / "traces" / name), limit=limit)).keys
    distinct, codes = np.unique(keys, return_inverse=True)
    nexts = next_uses(codes, len(distinct))
    file = scratch / "trace.oracleGeneral.bin"
    write_oracle(file, codes, nexts)
    for share in SHARES:
        for policy, theirs in PEERS.items():
            capacity = int(share * len(distinct))
            capacity -= capacity % 4 if policy == "slru" else 0
            reader = peer.TraceReader(
                trace=str(file), trace_type=peer.TraceType.ORACLE_GENERAL_TRACE,
                reader_init_params=peer.ReaderInitParam(ignore_obj_size=True),
            )  # fmt: skip
            missed, _ = getattr(peer, theirs)(cache_size=capacity, hashpower=16).process_trace(
                reader
            )
            ours: str | Policy = policy
            if policy == "belady":
                ours = Policy.of(make_belady(capacity, len(keys), nexts), capacity)
            hits = Replay(ours, capacity).run(keys)
            assert hits == round((1 - missed) * len(keys)), (policy, capacity)


@pytest.mark.parametrize("name", TRACES)
def test_hits_are_those_of_libcachesim(shared_data: Path, tmp_path: Path, name: str) -> None:
    compare(shared_data, tmp_path, name, TRACES[name])


@pytest.mark.stress
@pytest.mark.parametrize("name", [name for name, limit in TRACES.items() if limit])
def test_hits_are_those_of_libcachesim_on_whole_traces(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    compare(shared_data, tmp_path, name, None)


def test_hits_are_those_that_were_published(shared_data: Path) -> None:
    """By the author of the trace, for 100,000 entries: lru, lfu, arc and the best possible."""
    keys = read_all(open_trace(str(shared_data / "traces" / "scarab-recs.trace.xz"))).keys
    distinct, codes = np.unique(keys, return_inverse=True)
    best = make_belady(100_000, len(keys), next_uses(codes, len(distinct)))
    policies = {"lru": 75.91, "lfu": 73.95, "arc": 76.09, Policy.of(best, 100_000): 79.25}
    for policy, published in policies.items():
        rate = 100 * Replay(policy, 100_000).run(keys) / len(keys)
        # What was run as arc is not known; the paper's algorithm gets 76.08.
        assert rate == pytest.approx(published, abs=0.015 if policy == "arc" else 0.005)
