"""Eviction policies: which position leaves first.

A policy is arrays and kernels over *positions*; it never sees keys or rows. All calls come in batch
order from one thread, so what is evicted is a function of the accesses alone, never of timing.
One more policy is one more file with a class that has these methods, and a line in `POLICIES`.

Threads: one owner.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from storage.clock import Clock
from storage.errors import ConfigError
from storage.lfu import Lfu
from storage.lru import Lru
from storage.queue import Queue
from storage.rows import Positions
from storage.sieve import Sieve


class Policy(Protocol):
    """Order of eviction over ``capacity`` positions; each method takes unique positions."""

    bytes_per_position: int

    @staticmethod
    def fixed_bytes(capacity: int) -> int:
        """Bytes beside those of the positions."""
        ...

    def insert(self, positions: Positions) -> None:
        """These positions became occupied."""
        ...

    def touch(self, positions: Positions) -> None:
        """These occupied positions were used, in this order."""
        ...

    def demote(self, positions: Positions) -> None:
        """Make these occupied positions the first to go (another tier owns the rows now)."""
        ...

    def remove(self, positions: Positions) -> None:
        """These positions became free."""
        ...

    def move(self, sources: Positions, targets: Positions) -> None:
        """The rows at occupied ``sources`` now stand at free ``targets``, in the same order."""
        ...

    def resize(self, capacity: int) -> None:
        """Only positions below ``capacity`` are used from now on, and none above are occupied."""
        ...

    def victims(self, count: int, pins: NDArray[np.uint16]) -> Positions:
        """The ``count`` unpinned positions to evict first (fewer if there are fewer), removed."""
        ...

    def order(self) -> Positions:
        """(n,) int64 copy of all occupied positions, the first to evict first: for checks."""
        ...


POLICIES: dict[str, type[Queue]] = {
    "lru": Lru, "fifo": Queue, "clock": Clock, "sieve": Sieve,
    "lfu": Lfu,
}  # fmt: skip
"""The policies by name."""


def make_policy(name: str, capacity: int) -> Policy:
    """A policy by name. Raises: ConfigError naming the known ones."""
    if name not in POLICIES:
        raise ConfigError(f"policy: expected one of {', '.join(POLICIES)}, got {name!r}")
    return POLICIES[name](capacity)
