"""Replays of keys through policies, access by access: what a cache of so many places would hit.

The index, the policies and their kernels are those of `storage.cache.CacheTier`; only the rows are
missing. Numba compiles index and policy into one loop for each policy.

Threads: a `Replay` has one owner; several may run at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.index import PositionIndex, erase_one, find_one, insert_one
from storage.kernel import keep, kernel, unowned
from storage.policies.kernels import run
from storage.policy import Policy, make_policy
from storage.rows import Keys


@kernel
def _replay(
    slots: Any, owners: Any, state: Any, nobody: Any, used: Any, keys: Any, hit: Any
) -> Any:
    """Number of hits. used: (1,) places taken so far. hit: (N,) uint8, written, or (0,)."""
    slots, owners, nobody, used, keys, hit = unowned((slots, owners, nobody, used, keys, hit))
    state = unowned(state)
    position_owner, key_owner = np.empty(1, np.int64), np.empty(1, np.uint64)
    one, coming = unowned((position_owner, key_owner))
    capacity, hits = owners.shape[0], 0
    for i in range(keys.shape[0]):
        key = keys[i]
        position = find_one(slots, owners, key)
        if position >= 0:
            one[0] = position
            run(state, "touch", one)
            hits += 1
            if hit.shape[0]:
                hit[i] = 1
            continue
        coming[0] = key
        run(state, "expect", coming)
        if used[0] < capacity:
            one[0] = used[0]
            used[0] += 1
        else:
            run(state, "victims", nobody, one)
            erase_one(slots, owners, one[0])
        owners[one[0]] = key
        insert_one(slots, key, one[0])
        run(state, "insert", one)
    keep(position_owner)
    keep(key_owner)
    return hits


class Replay:
    """A cache of ``capacity`` places, empty at first, that counts ``hits`` in ``accesses``.

    policy: a name of `storage.policy.POLICIES`, or a `Policy` over ``owners`` that is set up.
    """

    def __init__(self, policy: str | Policy, capacity: int) -> None:
        self.accesses = self.hits = 0
        owners = np.zeros(capacity, np.uint64)
        self._index = PositionIndex(owners)
        self._policy = make_policy(policy, capacity, owners)
        self._nobody = np.zeros(capacity, np.uint16)
        self._used = np.zeros(1, np.int64)

    def run(self, keys: Keys) -> int:
        """Access (N,) uint64 keys in order: how many hit."""
        return self._go(keys, np.empty(0, np.uint8))

    def trace(self, keys: Keys) -> NDArray[np.bool_]:
        """As `run`: (N,) bool, which hit."""
        hit = np.zeros(len(keys), np.uint8)
        self._go(keys, hit)
        return hit.view(np.bool_)

    def _go(self, keys: Keys, hit: NDArray[np.uint8]) -> int:
        index, state = self._index, self._policy.state
        hits = _replay(index.slots, index.owners, state, self._nobody, self._used, keys, hit)
        self.accesses += len(keys)
        self.hits += hits
        return int(hits)
