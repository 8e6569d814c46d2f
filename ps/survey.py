"""Survey: passes over all rows of a table, a bounded piece at a time.

What is dirty goes to the log first, and compaction stands still until the pass is over; the store
must not change meanwhile, but for what the pass itself deletes.

Threads: a pass may be begun in one thread and ended in another.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

from ps.compactor import Compactor
from ps.planner import Planner
from ps.stack import Stack
from storage.rows import Keys, Rows
from storage.ssd import SsdTier

Order = Callable[[SsdTier], Iterator[Rows]]
"""`SsdTier.scan`, or `SsdTier.by_key`."""


class Survey:
    """See the module's docstring. settle: unpins what nobody uses; called in the planner's turn."""

    def __init__(self, planner: Planner, compactor: Compactor, settle: Callable[[], None]) -> None:
        self._planner = planner
        self._compactor = compactor
        self._settle = settle

    def pieces(self, stack: Stack, order: Order) -> Generator[Rows, None, None]:
        """Copies of all rows that were ever changed and are not deleted."""
        with self._compactor.paused():
            with self._planner, self._planner.changing():
                stack.hierarchy.flush()
            pieces = order(stack.ssd)
            while True:
                # Not held from piece to piece: the reader may stop, or end in another thread.
                with self._planner:
                    found = next(pieces, None)
                if found is None:
                    return
                yield found

    def expire(self, stack: Stack, older_than_steps: int) -> int:
        """Delete rows that no batch uses and no step changed lately: how many."""
        limit, expired = max(0, stack.step - older_than_steps), 0
        with closing(self.pieces(stack, SsdTier.scan)) as pieces:
            for rows in pieces:
                with self._planner:
                    self._settle()
                    keys = idle(stack, rows.keys[rows.steps < limit])
                    with self._planner.changing():
                        stack.delete(keys)
                expired += len(keys)
        return expired


def idle(stack: Stack, keys: Keys) -> Keys:
    """Those of the keys that no batch in flight uses. In the planner's turn."""
    positions = stack.top.place(keys)
    free = positions < 0
    free[~free] = stack.top.unpinned(positions[~free])
    return keys[free]
