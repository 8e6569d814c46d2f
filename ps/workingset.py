"""WorkingSet: the rows that one batch needs, resident and pinned until nobody uses them.

It is held by whoever uses it: the prefetch queue, the graph of a forward pass, a gradient that waits
for its step. When the last lets go, the store is told, and unpins at a moment that depends on the
order of batches only.

Threads: made by the store's planner; `hold` and `drop` from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from storage.rows import Counts, Keys, Positions


@dataclass(frozen=True, slots=True)
class Part:
    """One table's share of a working set.

    keys: (U,) uint64, unique, in batch order. positions: (U,) int64 in the top tier. counts: (U,)
    int32. inverses: for each request, in the order given, (N,) int32 into ``keys``.
    """

    keys: Keys
    positions: Positions
    counts: Counts
    inverses: Sequence[NDArray]


class WorkingSet:
    """Parts by table name. Starts held by nobody: `hold` it before it is handed on."""

    def __init__(self, parts: Mapping[str, Part], released: Callable[[WorkingSet], None]) -> None:
        self.parts = parts
        self._released = released
        self._holders = 0
        self._lock = threading.Lock()

    def hold(self) -> Hold:
        """One more holder."""
        with self._lock:
            self._holders += 1
        return Hold(self)

    def drop(self) -> None:
        """One holder less; the last one releases the rows."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._released(self)


class Hold:
    """One holder's claim on a working set; dropped once, at the latest when it is collected."""

    __slots__ = ("_set",)

    def __init__(self, working_set: WorkingSet) -> None:
        self._set: WorkingSet | None = working_set

    @property
    def active(self) -> bool:
        """The rows are still held by this."""
        return self._set is not None

    def drop(self) -> None:
        """Let go. Twice is fine."""
        held, self._set = self._set, None
        if held is not None:
            held.drop()

    def __del__(self) -> None:
        # A graph that is thrown away without a backward pass ends here.
        self.drop()
