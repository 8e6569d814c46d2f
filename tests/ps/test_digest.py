"""The digest of rows, against the definition in Python integers."""

from __future__ import annotations

import google_crc32c
import numpy as np

from ps.digest import rows_digest
from storage.rows import Rows

MASK = 2**64 - 1


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def expected(table: str, rows: Rows) -> int:
    total = 0
    for key, values in zip(rows.keys.tolist(), rows.values.view(np.uint32).tolist(), strict=True):
        state = mix(key ^ mix(google_crc32c.value(table.encode())))
        for word in values:
            state = mix(state ^ word)
        total += state
    return total & MASK


def some_rows(count: int = 40, width: int = 3) -> Rows:
    rng = np.random.default_rng(0)
    rows = Rows.empty(count, width)
    rows.keys[:] = rng.integers(0, 2**64, count, np.uint64)
    rows.keys[:2] = np.array([0, MASK], np.uint64)[:count]
    rows.values[:] = rng.normal(size=(count, width))
    return rows


def test_it_is_the_sum_of_the_rows_hashes() -> None:
    rows = some_rows()
    assert rows_digest("ads", rows) == expected("ads", rows)
    assert rows_digest("ads", some_rows(0)) == 0


def test_order_and_step_do_not_count_and_everything_else_does() -> None:
    rows = some_rows()
    digest = rows_digest("ads", rows)
    mixed = rows.take(np.random.default_rng(1).permutation(len(rows)))
    mixed.steps[:] = 9
    assert rows_digest("ads", mixed) == digest
    assert rows_digest("users", rows) != digest
    assert rows_digest("ads", rows.take(np.arange(1, len(rows)))) != digest
    for place in ((3, 0), (3, 2)):
        changed = rows.take(np.arange(len(rows)))
        changed.values.view(np.uint32)[place] ^= 1
        assert rows_digest("ads", changed) != digest
    swapped = rows.take(np.arange(len(rows)))
    swapped.keys[[4, 5]] = swapped.keys[[5, 4]]
    assert rows_digest("ads", swapped) != digest
