"""Differing rows are named; NaN equals itself, and a new key's row may have been rounded."""

from __future__ import annotations

import numpy as np

from storage.difference import differing, equal
from tests.storage.test_tier import as_keys, rows_of


def test_equal_goes_by_bits() -> None:
    left = np.array([[np.nan, 1], [0.0, 1]], np.float32)
    right = np.array([[np.nan, 1], [-0.0, 1]], np.float32)
    assert equal(left, right).tolist() == [True, False]


def test_the_first_row_that_differs_is_named_and_rounding_of_new_ones_allowed() -> None:
    rows, below = rows_of(as_keys(4, 5, 6), 1), rows_of(as_keys(4, 5, 6), 1)
    missing = np.array([False, False, True])
    rounded = below.values.copy()
    assert differing("ram", rows, below, missing, rounded) == []
    rows.values[2] += 1
    rounded[2] += 1
    assert differing("ram", rows, below, missing, rounded) == []
    rows.values[1] += 1
    (line,) = differing("ram", rows, below, missing, rounded)
    assert "'ram'" in line and "1 differ, key 5 first" in line
