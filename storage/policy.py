"""Eviction policies: which position leaves first.

A policy is data: a NamedTuple of arrays over *positions*, with numba kernels as its static methods.
It never sees rows, and keys only where it remembers who has left (``owners``, the cache's own array
of the key at each position). All calls come in batch order from one thread, so what is evicted is a
function of the accesses alone, never of timing.

One more policy is one more file in `storage.policies` with such a class, and a line in `POLICIES`.
The class has the kernels that `Policy` calls, a `begin` that sets the arrays up, and a `layout`
that says what they are, so that their bytes are counted before they exist.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.array import Region
from storage.errors import ConfigError
from storage.policies import kernels
from storage.policies.arc import Arc
from storage.policies.clock import Clock
from storage.policies.fifo import Fifo
from storage.policies.layered import Layered
from storage.policies.layout import Layout
from storage.policies.lfu import Lfu
from storage.policies.lru import Lru
from storage.policies.s3fifo import S3Fifo
from storage.policies.sieve import Sieve
from storage.policies.slru import Slru
from storage.policies.tinylfu import TinyLfu
from storage.policies.twoq import TwoQ
from storage.rows import Keys, Positions

POLICIES: dict[str, Any] = {
    "lru": Lru, "fifo": Fifo, "clock": Clock, "sieve": Sieve, "lfu": Lfu, "slru": Slru,
    "2q": TwoQ, "s3fifo": S3Fifo, "arc": Arc, "w-tinylfu": TinyLfu, "lru-lfu": Layered,
}  # fmt: skip
"""The policies by name."""

DEFAULT = "sieve"
"""The policy where nobody names one, for what it measures best at equal bytes and least work.

SSD rows read, of what lru reads, geometric mean over batches of two click logs, flights, four
traces and a synthetic Zipf 1.05, with RAM for 5 % and for 20 % of the rows (64 floats and state):
w-tinylfu 0.81, sieve 0.81, arc 0.82, slru 0.82, s3fifo 0.83, lfu 0.86, lru-lfu 0.89, 2q 0.93,
clock 0.95, fifo 1.23; the best possible 0.18. A use costs sieve one byte written, and it needs 9
bytes a row where those with ghosts or a sketch need 13 to 36.
"""


class Policy:
    """Order of eviction over ``capacity`` positions; each method takes unique positions.

    kind: one of `POLICIES`. owners: (C,) uint64, the key at each position; the caller sets it
    before `insert` and leaves it until after `victims`. state: the arrays, for kernels. layout: of
    those that the policy has memory of its own for.
    """

    def __init__(self, kind: Any, capacity: int, owners: Keys) -> None:
        self.layout: Layout = kind.layout(capacity)
        self._regions = {
            name: (_region(before + capacity, np.dtype(dtype)), before)
            for name, (dtype, before) in self.layout.by_position.items()
        }
        arrays = {name: region.array for name, (region, _) in self._regions.items()}
        fixed = self.layout.fixed.items()
        arrays |= {name: np.zeros(count, dtype) for name, (dtype, count) in fixed}
        if "owners" in kind._fields:
            arrays["owners"] = owners
        self._adopt(kind(**arrays), capacity)
        kernels.begin(self.state, capacity)

    @classmethod
    def of(cls, state: Any, capacity: int) -> Policy:
        """A policy of arrays that are set up already (Belady's, say)."""
        policy = cls.__new__(cls)
        policy.layout, policy._regions = Layout({}), {}
        policy._adopt(state, capacity)
        return policy

    def _adopt(self, state: Any, capacity: int) -> None:
        self.state = state
        self._capacity = capacity

    def expect(self, keys: Keys) -> None:
        """(n,) uint64: these keys are not here and come next; a policy may know them from before.

        Who has left and is asked for again is news of how well the policy does. Not calling it
        costs hits, never correctness.
        """
        kernels.expect(self.state, keys)

    def insert(self, positions: Positions) -> None:
        """These positions became occupied."""
        kernels.insert(self.state, positions)

    def touch(self, positions: Positions) -> None:
        """These occupied positions were used, in this order."""
        kernels.touch(self.state, positions)

    def demote(self, positions: Positions) -> None:
        """Make these occupied positions the first to go (another tier owns the rows now)."""
        kernels.demote(self.state, positions)

    def remove(self, positions: Positions) -> None:
        """These positions became free."""
        kernels.remove(self.state, positions)

    def move(self, sources: Positions, targets: Positions) -> None:
        """The rows at occupied ``sources`` now stand at free ``targets``, in the same order."""
        kernels.move(self.state, sources, targets)

    def resize(self, capacity: int) -> None:
        """Only positions below ``capacity`` are used from now on, and none above are occupied."""
        kernels.resize(self.state, capacity)
        for region, before in self._regions.values():
            region.release(before + capacity)

    def victims(self, count: int, pins: NDArray[np.uint16]) -> Positions:
        """The ``count`` unpinned positions to evict first (fewer if there are fewer), removed."""
        out = np.empty(count, np.int64)
        return out[: kernels.victims(self.state, pins, out)]

    def order(self) -> Positions:
        """(n,) int64 copy of all occupied positions, the first to evict first: for checks. Slow."""
        copies = (array.copy() for array in self.state)
        out, nobody = np.empty(self._capacity, np.int64), np.zeros(self._capacity, np.uint16)
        return out[: kernels.victims(type(self.state)(*copies), nobody, out)]


def _region(count: int, kind: np.dtype[Any]) -> Region:
    return Region(count, kind.base, *kind.shape)


def layout_of(name: str, capacity: int) -> Layout:
    """The arrays that a policy of so many positions is made of."""
    layout: Layout = POLICIES[check_policy(name)].layout(capacity)
    return layout


def make_policy(name: str | Policy, capacity: int, owners: Keys | None = None) -> Policy:
    """A policy by name, or the one that is given; owners: see `Policy`.

    Raises: ConfigError naming the known ones.
    """
    if isinstance(name, Policy):
        return name
    kind = POLICIES[check_policy(name)]
    return Policy(kind, capacity, np.zeros(capacity, np.uint64) if owners is None else owners)


def check_policy(name: str) -> str:
    """The name, if it is a policy's. Raises: ConfigError naming the known ones."""
    if name not in POLICIES:
        raise ConfigError(f"policy: expected one of {', '.join(POLICIES)}, got {name!r}")
    return name
