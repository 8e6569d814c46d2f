"""Observers: told of every staged batch once, in order, as it was asked for; of nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

import ps
from storage.errors import WorkingSetError
from storage.rows import Keys

ADS = ps.Table("ads", dim=4, optimizer=ps.SGD(lr=0.1))


class Listener:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[list[list[int]], list[int]]] = []
        self.closed = 0

    def staged(self, requests: Mapping[str, Sequence[Keys]], unique: Mapping[str, Keys]) -> None:
        self.told.append(([each.tolist() for each in requests["ads"]], unique["ads"].tolist()))

    def close(self) -> None:
        self.closed += 1


def keys(*ids: int) -> Keys:
    return np.array(ids, np.uint64)


def test_a_batch_is_told_as_it_was_asked_for(tmp_path: Path) -> None:
    listener, second = Listener(), Listener()
    with ps.open(tmp_path, [ADS], ram="1MiB") as store:
        store.observers.add(listener)
        store.stage({"ads": [keys(3, 1, 3), keys(1, 2)]})
        store.observers.add(second)
        store.stage({"ads": [keys(9)]})
        store.read("ads", keys(5))
        store.write("ads", keys(6), np.ones((1, 4), np.float32))
        store.settle()
    assert listener.told == [([[3, 1, 3], [1, 2]], [3, 1, 2]), ([[9]], [9])]
    assert second.told == listener.told[1:]
    assert (listener.closed, second.closed) == (1, 1)


def test_a_batch_that_does_not_fit_is_not_told(tmp_path: Path) -> None:
    listener = Listener()
    with ps.open(tmp_path, [ADS], ram="1MiB") as store:
        store.observers.add(listener)
        with pytest.raises(WorkingSetError):
            store.stage({"ads": [np.arange(100_000, dtype=np.uint64)]})
    assert listener.told == []


def test_an_observer_that_fails_leaves_nothing_pinned(tmp_path: Path) -> None:
    class Failing(Listener):
        def staged(self, *told: object) -> None:
            raise KeyError("observer")

    with ps.open(tmp_path, [ADS], ram="1MiB") as store:
        store.observers.add(Failing())
        with pytest.raises(KeyError):
            store.stage({"ads": [keys(1, 2)]})
        store.settle()
        assert store.stacks["ads"].top.pinned == 0
