"""What a tier is. Read this file first: everything in storage/ is one of these.

A tier looks up, admits and writes *rows* by *key*, a whole batch at a time. A stack of tiers
(`storage.hierarchy.Hierarchy`) is itself a tier, so three levels need no third class::

    Hierarchy(CacheTier on the GPU, Hierarchy(CacheTier in RAM, SsdTier))

Invariants that every tier keeps:

* A row is owned by the highest tier that holds it. The copy below is stale until the row is
  written back. There is no moment at which a dirty row is in no tier.
* Keys of one call are unique. A tier that gains from an order sorts for itself.
* A missing key is an answer, never an exception.
* What is evicted is *returned* by the call that evicted it, never handed to a callback.

Threads: a tier has one owner at a time. The store's planner lock says who; nothing here locks.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from storage.rows import Counts, Keys, Rows
from storage.stats import TierStats


class Tier(Protocol):
    """The contract that `SsdTier` and `Hierarchy` fulfil.

    A `CacheTier` has the same `lookup`, `peek`, `delete` and `check`, but it is bounded: what it is
    given with `admit` may push out other rows, and only a hierarchy knows where those go.
    """

    name: str
    width: int

    def lookup(self, keys: Keys, counts: Counts) -> tuple[Rows, NDArray[np.bool_]]:
        """Hand rows to the tier above: (rows aligned with keys, missing (U,) bool).

        counts: (U,) int32, how often the batch uses each key, for the figures. Rows where
        ``missing`` is set hold nothing. Counts as a use, and makes the rows handed out the first
        candidates for eviction here, since the tier above owns them now.

        Raises: CorruptError when a row cannot be read.
        """
        ...

    def peek(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """The same answer as `lookup`, but nothing is counted, reordered or moved."""
        ...

    def write(self, rows: Rows) -> None:
        """Take rows back from the tier above; the clean ones need not be kept.

        Raises: DiskFullError; the caller then still owns all of these rows.
        """
        ...

    def delete(self, keys: Keys) -> None:
        """Forget these keys, here and below; unknown keys are fine."""
        ...

    def flush(self) -> None:
        """Give every dirty row to the tier below; return when the lowest tier has them all.

        Raises: DiskFullError; no row is lost, those not written are dirty still.
        """
        ...

    def check(self) -> list[str]:
        """Broken invariants, one line each; empty when all is well. Reads everything."""
        ...

    def close(self) -> None:
        """Release memory, threads and files without flushing. Twice is fine."""
        ...


class Lower(Tier, Protocol):
    """The tier below a cache: a tier that says how much of the cache's budget it takes."""

    @property
    def stats(self) -> TierStats:
        """Counters of its own level."""
        ...

    @property
    def memory_bytes(self) -> int:
        """RAM it holds now."""
        ...

    def growth_bound(self, rows: int) -> int:
        """RAM that writing this many rows can add at most."""
        ...
