"""Survey: a pass sees every row once, and expiry goes by the step of the last apply."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import ps
import worker
from ps.survey import idle

ADS = ps.Table("ads", dim=2, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())


def train(store: ps.Store, *batches: range) -> None:
    """A step on each batch of keys."""
    bag, sparse = worker.EmbeddingBag(store, "ads"), worker.SparseOptimizer(store)
    sparse.param_groups[0]["steps"] = store.stacks["ads"].step
    for keys in batches:
        bag(torch.tensor([list(keys)])).sum().backward()
        sparse.step()


def test_rows_expire_by_the_step_that_last_changed_them(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        train(store, range(10), range(5, 15), range(20, 22))
        store.write("ads", np.array([40]), np.ones((1, 2)))  # counts as changed at step 3
        assert store.expire(2) == 0
        assert store.expire(1) == 5  # rows 0 to 4 were changed at step 1 only
        train(store, range(30, 31))
        assert store.expire(0, "ads") == 13
        left = np.concatenate([rows.keys for rows in store.rows("ads")])
        assert left.tolist() == [30]


def test_the_step_survives_closing_and_going_back(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        train(store, range(3), range(3))
        store.checkpoint(1)
        train(store, range(3))
    with ps.open(tmp_path, None, ram="2MiB") as store:
        assert store.stacks["ads"].step == 3
        store.resume()
        assert store.stacks["ads"].step == 2


def test_rows_of_a_batch_in_flight_do_not_expire(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        train(store, range(10), range(1))
        held = store.stage({"ads": [np.arange(3, 6, dtype=np.uint64)]}).hold()
        keys = np.arange(8, dtype=np.uint64)
        store.settle()
        assert idle(store.stacks["ads"], keys).tolist() == [0, 1, 2, 6, 7]
        assert store.expire(0) == 6
        held.drop()
        assert store.expire(0) == 3


def test_a_pass_that_is_left_early_lets_compaction_go_on(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        store.write("ads", np.arange(50_000), np.ones((50_000, 2)))
        pieces = store.scan("ads")
        first = next(pieces)
        assert store._upkeep.compactor._pauses == 1
        pieces.close()
        assert store._upkeep.compactor._pauses == 0
        total = sum(len(rows) for rows in store.scan("ads"))
        assert 0 < len(first) <= total == 50_000
