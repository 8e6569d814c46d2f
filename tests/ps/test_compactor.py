"""Compactor: the file stays small while rows are overwritten, and no result shows it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import ps

ADS = ps.Table("ads", dim=64, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())
ROWS, DEADLINE = 20_000, 20.0


def overwrite(store: ps.Store, times: int) -> np.ndarray:
    """Write rows at random: the value that each has then."""
    rng, values = np.random.default_rng(0), np.zeros(ROWS, np.float32)
    for value in range(1, 1 + 10 * times):
        keys = rng.permutation(ROWS)[: ROWS // 10]
        store.write("ads", keys, np.full((len(keys), 64), value, np.float32))
        values[keys] = value
        if value % 5 == 0:
            store.checkpoint(value)
    return values


def work_off(store: ps.Store) -> None:
    compactor, deadline = store._upkeep.compactor, time.monotonic() + DEADLINE
    while compactor._tables[0].excess and time.monotonic() < deadline:
        pass
    while compactor._slice():
        pass


def test_the_thread_frees_what_is_stale(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="3MiB", compact="10GiB") as store:
        values = overwrite(store, 12)
        tier = store.stacks["ads"].ssd
        work_off(store)
        # What was emptied after a checkpoint stays until it is given up.
        store.checkpoint(1000)
        store.checkpoint(1001)
        work_off(store)
        assert store._upkeep.compactor._thread.is_alive()
        assert tier.stats.segments_freed > 0
        assert not store._upkeep.compactor._tables[0].excess
        assert store.read("ads", np.arange(ROWS))[:, 0].tolist() == values.tolist()
        assert store.check() == []
        log = store.stats()["tables"]["ads"]["log"]
        assert log["space_amplification"] < 2.2 and 1 < log["write_amplification"] < 5
        assert log["index_bytes_per_row"] > 0 and 0 < log["stale"] < 1
    with ps.open(tmp_path, None, ram="3MiB") as store:
        assert store.read("ads", np.arange(ROWS))[:, 0].tolist() == values.tolist()
        assert store.check() == []


def test_who_writes_faster_than_the_thread_helps(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="3MiB", compact="1KiB") as store:
        compactor, tier = store._upkeep.compactor, store.stacks["ads"].ssd
        compactor.close()
        overwrite(store, 12)
        assert tier.stats.segments_freed > 0
        needed = ROWS / tier.shape.rows
        assert tier.segments.blocks - tier.segments.emptied_blocks < 2 * needed + 128


def test_nothing_moves_while_it_is_paused(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="3MiB", compact="10GiB") as store:
        with store._upkeep.compactor.paused():
            overwrite(store, 6)
            assert store.stacks["ads"].ssd.stats.rows_moved == 0
        deadline = time.monotonic() + DEADLINE
        while not store.stacks["ads"].ssd.stats.rows_moved and time.monotonic() < deadline:
            pass
        assert store.stacks["ads"].ssd.stats.rows_moved


def test_reclaiming_touches_nothing_that_a_cut_names(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="3MiB") as store:
        compactor = store._upkeep.compactor
        with compactor.paused():
            values = overwrite(store, 1)
            store.checkpoint(99)
            for _ in range(5):
                store.write("ads", np.arange(ROWS), np.full((ROWS, 64), 7, np.float32))
            blocks = store.stacks["ads"].ssd.segments.blocks
            while compactor.reclaim(lambda: 1 << 30):
                pass
            assert store.stacks["ads"].ssd.segments.blocks < blocks
        store.resume()
        assert store.read("ads", np.arange(ROWS))[:, 0].tolist() == values.tolist()
