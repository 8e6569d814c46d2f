"""Beyond: a lowest tier without rows, for replays: it knows which keys it was given, nothing else.

It answers as `storage.ssd.SsdTier` does: what was written below is found, what never was is
missing.

Threads: one owner.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storage.index import PositionIndex
from storage.rows import Counts, Keys, Rows
from storage.stats import TierStats


class Beyond:
    """See the module's docstring. distinct: different keys that come at most. Rows are zeros.

    It holds 20 bytes a key.
    """

    memory_bytes = 0

    def __init__(self, distinct: int, width: int) -> None:
        self.name = "ssd"
        self.width = width
        self.stats = TierStats()
        self._index = PositionIndex(np.zeros(distinct, np.uint64))
        self._held = 0

    def lookup(self, keys: Keys, counts: Counts) -> tuple[Rows, NDArray[np.bool_]]:
        """Rows of zeros, and which keys never came."""
        rows, missing = self.peek(keys)
        found = len(keys) - int(np.count_nonzero(missing))
        self.stats.accesses += int(counts.sum())
        self.stats.access_hits += int(counts[~missing].sum())
        self.stats.keys += len(keys)
        self.stats.key_hits += found
        self.stats.rows_read += found
        return rows, missing

    def peek(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """The same; nothing is counted."""
        rows = Rows.empty(len(keys), self.width)
        rows.keys[:], rows.values[:] = keys, 0
        return rows, self._index.find(keys) < 0

    def write(self, rows: Rows) -> None:
        """Know these keys from now on."""
        self.stats.rows_written += len(rows)
        new = rows.keys[self._index.find(rows.keys) < 0]
        self._index.insert(new, np.arange(self._held, self._held + len(new)))
        self._held += len(new)

    def delete(self, keys: Keys) -> None:
        """Forget keys."""
        positions = self._index.find(keys)
        self._index.erase(positions[positions >= 0])

    def growth_bound(self, rows: int) -> int:
        """Nothing here has a budget."""
        return 0

    def flush(self) -> None:
        """Nothing to do."""

    def check(self) -> list[str]:
        """Nothing can be wrong."""
        return []

    def close(self) -> None:
        """Nothing to do."""
