"""Counters of a tier stack. They only grow; the reader computes rates from two readings.

A hit is counted twice over, per *access* (duplicates of a batch count) and per *unique key* of a
batch, since the two differ by several times on skewed data. Keys that no tier has ever held are
*first seen*: no cache of any size would have had them, so they are kept apart from misses.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from storage.rows import Counts


@dataclass(slots=True)
class TierStats:
    """Counters of one tier. All are numbers of rows or accesses since the store was opened."""

    accesses: int = 0
    access_hits: int = 0
    keys: int = 0
    key_hits: int = 0
    admitted: int = 0
    evicted: int = 0
    rows_read: int = 0
    rows_written: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def count(self, hit: NDArray[np.bool_], counts: Counts) -> None:
        """Count one batch's uses, and which were hits: (U,) bool and (U,) int32.

        A count of 0 is no use: the key was asked for ahead of it.
        """
        self.accesses += int(counts.sum())
        self.access_hits += int(counts[hit].sum())
        self.keys += int(np.count_nonzero(counts))
        self.key_hits += int(np.count_nonzero(counts[hit]))

    def report(self) -> dict[str, int]:
        """The counters as a dict of JSON values."""
        return asdict(self)


@dataclass(slots=True)
class SsdStats(TierStats):
    """Counters of an SSD tier. rows_moved: written again by compaction, unchanged."""

    rows_deleted: int = 0
    rows_moved: int = 0
    segments_freed: int = 0


@dataclass(slots=True)
class FirstSeen:
    """Keys no tier held when a batch asked for them, per access and per unique key."""

    accesses: int = 0
    keys: int = 0
