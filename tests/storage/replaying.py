"""Replays keys one at a time against a policy, as a cache of so many entries would.

Oracles are the papers' algorithms over keys, written with dicts and lists; a policy knows positions
only, so here each key has one while it is in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from storage.policy import make_policy

NOBODY = np.zeros(1 << 12, np.uint16)


def hits(name: str, capacity: int, keys: list[int]) -> list[bool]:
    """Of each access, whether the policy's cache had the key."""
    owners = np.zeros(capacity, np.uint64)
    policy, place, found = make_policy(name, capacity, owners), dict[int, int](), []
    keys_at, free = dict[int, int](), list(range(capacity))
    for key in keys:
        found.append(key in place)
        if key in place:
            policy.touch(np.array([place[key]]))
            continue
        policy.expect(np.array([key], np.uint64))
        if not free:
            victim = int(policy.victims(1, NOBODY)[0])
            del place[keys_at.pop(victim)]
            free.append(victim)
        place[key] = free.pop()
        keys_at[place[key]] = key
        owners[place[key]] = key
        policy.insert(np.array([place[key]]))
    return found


def skewed(seed: int, count: int, distinct: int) -> list[int]:
    """Keys of a few that are asked for often and many that are not."""
    rng = np.random.default_rng(seed)
    return (rng.zipf(1.3, count) % distinct).tolist()


Oracle = Callable[[int, list[int]], list[bool]]
"""Capacity and keys -> of each access, whether it hits."""


def assert_as(oracle: Oracle, name: str) -> None:
    """Hits are the oracle's, access by access, for several sizes and sequences."""
    for seed, capacity in enumerate((1, 2, 3, 10, 50)):
        keys = skewed(seed, 2000, 120)
        assert hits(name, capacity, keys) == oracle(capacity, keys)
