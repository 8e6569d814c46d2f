"""Replays beside libCacheSim's, access by access: python -m tests.benchmarks.replay TRACE ROWS.

Both have the trace in memory or in the page cache; libCacheSim's loop is its own C++ one, called
from Python. Medians of rounds that alternate.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from storage.policies.belady import make_belady, next_uses
from storage.policy import Policy
from storage.replay import Replay
from tests.storage.test_peer import PEERS, write_oracle
from worker.data.trace import open_trace, read_all

ROUNDS = 5


def main(spec: str, capacity: int) -> None:
    import libcachesim

    peer: Any = libcachesim
    keys = read_all(open_trace(spec)).keys
    distinct, codes = np.unique(keys, return_inverse=True)
    nexts = next_uses(codes, len(distinct))
    print(f"{spec}: {len(keys):,} accesses, {len(distinct):,} keys, {capacity:,} rows")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.oracleGeneral.bin"
        write_oracle(file, codes, nexts)
        for policy, theirs in PEERS.items():
            ours, others = [], []
            for _ in range(ROUNDS):
                chosen: str | Policy = policy
                if policy == "belady":
                    chosen = Policy.of(make_belady(capacity, len(keys), nexts), capacity)
                replay = Replay(chosen, capacity)
                replay.run(keys[:0])
                began = time.perf_counter()
                replay.run(keys)
                ours.append(len(keys) / (time.perf_counter() - began))
                reader = peer.TraceReader(
                    trace=str(file), trace_type=peer.TraceType.ORACLE_GENERAL_TRACE,
                    reader_init_params=peer.ReaderInitParam(ignore_obj_size=True),
                )  # fmt: skip
                cache = getattr(peer, theirs)(cache_size=capacity)
                began = time.perf_counter()
                cache.process_trace(reader)
                others.append(len(keys) / (time.perf_counter() - began))
            one, other = statistics.median(ours) / 1e6, statistics.median(others) / 1e6
            print(f"{policy:8} {one:6.1f} M/s   libCacheSim {other:5.1f} M/s   {one / other:5.1f}x")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
