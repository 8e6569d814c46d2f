"""Durability: what each mode promises after a crash; a cut falls between steps, never inside."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

import ps

ADS = ps.Table("ads", dim=2, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())
DEADLINE = 30.0


def written(store: ps.Store, value: float) -> None:
    store.write("ads", np.arange(100), np.full((100, 2), value, np.float32))


def found(path: Path) -> float:
    """What a process that opens the store after a crash sees."""
    with ps.open(path, None, ram="2MiB") as store:
        return float(store.read("ads", np.array([5]))[0, 0])


def test_strict_loses_nothing_that_returned(tmp_path: Path) -> None:
    store = ps.open(tmp_path, [ADS], ram="2MiB", durability="strict")
    for value in (1.0, 2.0, 3.0):
        written(store, value)
    store.abandon()
    assert found(tmp_path) == 3.0


def test_checkpoint_loses_what_came_after_the_last_one(tmp_path: Path) -> None:
    store = ps.open(tmp_path, [ADS], ram="2MiB")
    written(store, 1.0)
    store.checkpoint(1)
    written(store, 2.0)
    store.abandon()
    assert found(tmp_path) == 1.0


def test_interval_makes_a_cut_by_itself(tmp_path: Path) -> None:
    store = ps.open(tmp_path, [ADS], ram="2MiB", durability="interval", interval_seconds=0.05)
    written(store, 1.0)
    deadline = time.monotonic() + DEADLINE
    while not store._upkeep.checkpoints.cut.blocks and time.monotonic() < deadline:
        pass
    store.abandon()
    assert found(tmp_path) == 1.0


@pytest.mark.parametrize("durability", ["strict", "interval", "checkpoint"])
def test_a_deletion_is_durable_when_it_returns(tmp_path: Path, durability: str) -> None:
    store = ps.open(tmp_path, [ADS], ram="2MiB", durability=durability)
    written(store, 1.0)
    store.checkpoint(1)
    store.delete("ads", np.array([5]))
    store.abandon()
    assert found(tmp_path) == 0.0
    with ps.open(tmp_path, None, ram="2MiB") as store:
        store.resume()
        assert store.read("ads", np.array([5, 6])).tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_no_cut_falls_inside_a_step(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        inside, cut = threading.Event(), threading.Event()

        def make_a_cut() -> None:
            inside.wait(DEADLINE)
            store.cut()
            cut.set()

        thread = threading.Thread(target=make_a_cut)
        thread.start()
        with store.stepping():
            inside.set()
            assert not cut.wait(0.1)
        assert cut.wait(DEADLINE)
        thread.join(DEADLINE)


def test_a_cut_does_not_move_what_resume_goes_back_to(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="2MiB") as store:
        written(store, 1.0)
        store.checkpoint(1, {"x": 1})
        written(store, 2.0)
        store.cut()
        store.abandon()
    assert found(tmp_path) == 2.0
    with ps.open(tmp_path, None, ram="2MiB") as store:
        assert store.resume() == (1, {"x": 1})
        assert store.read("ads", np.array([5]))[0, 0] == 1.0
