"""Difference: rows of a cache that are not what they should be. For checks.

Threads: any; nothing is kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storage.rows import Floats, Rows


def differing(
    name: str, rows: Rows, below: Rows, missing: NDArray[np.bool_], rounded: Floats
) -> list[str]:
    """One line when clean rows of tier ``name`` are not what the tier below, or a new key, has.

    below: of the same keys; its values are initial ones where ``missing``, (U,) bool. rounded:
    (U, W) float32, those values as a narrower tier holds them.
    """
    same = equal(rows.values, below.values) & (rows.steps == below.steps)
    # A row nobody changed is not below; one that came from a wider tier was rounded here.
    same |= missing & equal(rows.values, rounded)
    if same.all():
        return []
    first = int(rows.keys[np.argmin(same)])
    return [
        f"tier {name!r}: expected clean rows as the tier below has them, but "
        f"{np.count_nonzero(~same)} differ, key {first} first; open the store again"
    ]


def equal(left: Floats, right: Floats) -> NDArray[np.bool_]:
    """(U,) bool: which rows have the same bits, so that NaN equals itself."""
    same: NDArray[np.bool_] = (left.view(np.uint32) == right.view(np.uint32)).all(axis=1)
    return same
