"""LookAhead: what a cache makes of the keys of coming batches.

A `Window` of batches, and the `Dues` that it gives to the rows of one cache. What is needed within
the window stays, as far as there is room, and what it lacks is named, to be read ahead.

Everything here is a function of the order of batches, never of time.

Threads: one owner, the store's planner.
"""

from __future__ import annotations

import numpy as np

from storage.cache import CacheTier
from storage.due import DUE_BYTES
from storage.rows import Keys, Positions
from storage.window import Batches, Window, window_bytes


def look_ahead_bytes(positions: int, uses: int, keys: int) -> int:
    """Bytes to look ahead over so many uses of keys, for a cache of so many positions."""
    return positions * DUE_BYTES + window_bytes(uses, keys)


class LookAhead:
    """See the module's docstring. uses, keys: of them are known at once."""

    def __init__(self, top: CacheTier, uses: int, keys: int) -> None:
        self.window = Window(uses, keys)
        self._top = top
        top.dues.begin()

    def enter(self, number: int, keys: Keys) -> bool:
        """Add a batch behind those known: whether there was room. keys: (U,) uint64, unique."""
        first = self.window.enter(number, keys)
        if first is None:
            return False
        positions = self._top.place(keys)
        here = first & (positions >= 0)
        self._top.dues.set(positions[here], np.full(np.count_nonzero(here), number, np.uint32))
        self.window.want(number, first & (positions < 0))
        return True

    def nexts(self, number: int, count: int) -> Batches:
        """(U,) uint32: the batch that uses each of the ``count`` keys of this batch next, or 0."""
        found = self.window.nexts(number)
        return found if len(found) else np.zeros(count, np.uint32)

    def room(self, missing: int, most: int) -> int:
        """How many rows, ``most`` at most, may be read with ``missing`` ones of a batch.

        None without those; else as many as there are places that hold nothing needed.
        """
        return max(0, min(most, self._top.spare - missing)) if missing else 0

    def wanted(self, number: int, most: int) -> tuple[Keys, Batches]:
        """Up to ``most`` keys to be read with those of this batch, and the batches that need them.

        They are not here, and lower tiers may not have all of them either.
        """
        keys, batches = self.window.wanted(number, most)
        absent = self._top.place(keys) < 0
        return keys[absent], batches[absent]

    def passed(self, number: int) -> None:
        """This batch has had its turn."""
        self.window.leave(number)
        self._top.dues.past = number

    def end(self) -> None:
        """Forget all of it; no row is kept any more."""
        self._top.look_no_further()


def keep(top: CacheTier, positions: Positions, batches: Batches, *, ahead: bool = False) -> None:
    """Keep those of the rows at ``positions`` that are here (not -1) for these batches."""
    here = positions >= 0
    top.dues.set(positions[here], batches[here], ahead=ahead)
