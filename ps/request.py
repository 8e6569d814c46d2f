"""Requests: what a batch asks of a table, made unique."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ps.table import Table
from storage.keys import Deduper, check_range
from storage.rows import Counts, Keys


def unique_keys(
    table: Table, requests: Sequence[Keys], deduper: Deduper
) -> tuple[Keys, list[NDArray[np.int32]], Counts]:
    """The unique keys of several lookups in order of first occurrence, copies.

    requests: (N,) uint64 each. Returns unique (U,) uint64; for each lookup (N,) int32 into it;
    counts (U,) int32, uses of each in all of them. Raises: KeyRangeError.
    """
    keys = requests[0] if len(requests) == 1 else np.concatenate(requests)
    check_range(keys, table.rows, table.name)
    unique, inverse, counts = deduper.dedupe(keys)
    edges = np.cumsum([len(request) for request in requests])[:-1]
    return unique, np.split(inverse, edges), counts
