"""Beyond: knows what it was given."""

from __future__ import annotations

import numpy as np

from storage.beyond import Beyond
from storage.rows import Rows


def test_what_was_written_is_found_and_counted() -> None:
    beyond = Beyond(10, 1)
    keys, counts = np.array([7, 8, 9], np.uint64), np.array([1, 2, 4], np.int32)
    rows, missing = beyond.lookup(keys, counts)
    assert missing.all() and rows.keys.tolist() == [7, 8, 9]
    beyond.write(rows.take(np.array([0, 2])))
    beyond.write(Rows.empty(0, 1))
    assert beyond.lookup(keys, counts)[1].tolist() == [False, True, False]
    stats = beyond.stats
    assert (stats.keys, stats.key_hits, stats.accesses, stats.access_hits) == (6, 2, 14, 5)
    assert (stats.rows_read, stats.rows_written) == (2, 2)
    beyond.delete(np.array([7], np.uint64))
    assert beyond.peek(keys)[1].tolist() == [True, True, False]
    assert stats.keys == 6 and beyond.check() == []
