"""What kernels are made with: arrays without owners and hints to the cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from storage.kernel import fetch_item, fetch_row, keep, kernel, unowned


@kernel
def _fill(out: Any, values: Any) -> None:
    target, source = unowned((out, values))
    for i in range(source.shape[0]):
        target[i, 0] = source[i]


@kernel
def _sum_scratch(count: int) -> float:
    owner = np.empty(count)
    (scratch,) = unowned((owner,))
    for i in range(count):
        scratch[i] = i
        np.full(count, -1.0)  # would take the memory of an array that is gone
    total = scratch.sum()
    keep(owner)
    return total


@kernel
def _fetch(rows: Any, items: Any, where: int) -> None:
    fetch_row(rows, where)
    fetch_item(items, where)


def test_unowned_array_is_the_same_memory() -> None:
    out = np.zeros((3, 2), np.float32)
    _fill(out, np.array([1, 2, 3], np.int32))
    assert out.tolist() == [[1, 0], [2, 0], [3, 0]]


def test_kept_scratch_outlives_its_unowned_view() -> None:
    assert _sum_scratch(1000) == 499_500


def test_fetching_changes_nothing_and_never_faults() -> None:
    rows, items = np.ones((4, 100), np.float32), np.ones(4, np.uint8)
    for where in (0, 3, 4, -1, 2**60):
        _fetch(rows, items, where)
    _fetch(np.empty((0, 0), np.float32), np.empty(0, np.uint8), 0)
    assert (rows == 1).all() and (items == 1).all()
