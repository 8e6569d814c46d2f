"""WorkingSet: the rows that one batch needs, resident and pinned until nobody uses them.

It is held by whoever uses it: the prefetch queue, the graph of a forward pass, a gradient that
waits for its step. When the last lets go, the store is told, and unpins at a moment that depends on
the order of batches only.

Threads: made by the store's planner; `hold` and `drop` from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ps.table import Table
from storage.keys import Deduper, check_range
from storage.rows import Counts, Keys, Positions


@dataclass(frozen=True, slots=True)
class Asked:
    """What one batch asks of one table; fields as in `Part`."""

    keys: Keys
    counts: Counts
    inverses: Sequence[NDArray[np.int32]]

    @staticmethod
    def of(table: Table, requests: Sequence[Keys], deduper: Deduper) -> Asked:
        """From the keys of each request, (N,) uint64. Raises: KeyRangeError."""
        keys = requests[0] if len(requests) == 1 else np.concatenate(requests)
        check_range(keys, table.rows, table.name)
        unique, inverse, counts = deduper.dedupe(keys)
        edges = np.cumsum([len(request) for request in requests])[:-1]
        return Asked(unique, counts, np.split(inverse, edges))


@dataclass(frozen=True, slots=True)
class Part:
    """One table's share of a working set.

    keys: (U,) uint64, unique, in batch order. positions: (U,) int64 in the top tier. counts: (U,)
    int32. inverses: for each request, in the order given, (N,) int32 into ``keys``.
    """

    keys: Keys
    positions: Positions
    counts: Counts
    inverses: Sequence[NDArray[np.int32]]


class WorkingSet:
    """Parts by table name, held by nobody at first: `hold` it before it is handed on.

    arrived: what is to be put in place when the batch is entered. due: the step that it is for, as
    far as was known when it was staged.

    released: called once, from any thread, when the last holder lets go, or when the set is
    collected and nobody ever held it (an exception came between).
    """

    def __init__(self, parts: Mapping[str, Part], released: Callable[[WorkingSet], None]) -> None:
        self.parts = parts
        self.arrived: list[Any] = []
        self.due = 0
        self._released = released
        self._holders = 0
        self._over = False
        # Reentrant: collecting garbage while it is held may drop another holder of this same set.
        self._lock = threading.RLock()

    def hold(self) -> Hold:
        """One more holder."""
        with self._lock:
            self._holders += 1
        return Hold(self)

    def drop(self) -> None:
        """One holder less; the last one releases the rows."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0 and not self._over
            self._over |= last
        if last:
            self._released(self)

    def __del__(self) -> None:
        if not self._over:
            self._over = True
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
