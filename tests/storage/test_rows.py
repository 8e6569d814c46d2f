"""Rows are copies that can be taken apart."""

from __future__ import annotations

import numpy as np

from storage.rows import Rows


def test_empty_rows_are_clean_and_of_step_0() -> None:
    rows = Rows.empty(3, 5)
    assert len(rows) == 3 and rows.values.shape == (3, 5) and rows.values.dtype == np.float32
    assert not rows.steps.any() and not rows.dirty.any() and rows.keys.dtype == np.uint64


def test_taking_rows_copies_them_in_the_order_asked() -> None:
    rows = Rows.empty(4, 1)
    rows.keys[:] = rows.steps[:] = rows.values[:, 0] = np.arange(4)
    rows.dirty[:] = [False, True, False, True]
    chosen = rows.take(np.array([3, 0]))
    assert chosen.keys.tolist() == chosen.steps.tolist() == [3, 0]
    assert chosen.values[:, 0].tolist() == [3, 0] and chosen.dirty.tolist() == [True, False]
    masked = rows.take(rows.dirty)
    assert masked.keys.tolist() == [1, 3]
    masked.values[:] = -1
    assert rows.values[:, 0].tolist() == [0, 1, 2, 3]
