"""Arc: figure 4 of the paper with ordered dicts."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from storage.policy import make_policy
from tests.storage.replaying import assert_as


class Oracle:
    def __init__(self, capacity: int) -> None:
        self.capacity, self.target = capacity, 0.0
        self.t1, self.t2, self.b1, self.b2 = (OrderedDict[int, None]() for _ in range(4))

    def access(self, key: int) -> bool:
        if key in self.t1 or key in self.t2:
            self.t1.pop(key, None)
            self.t2[key] = None
            self.t2.move_to_end(key)
            return True
        b1, b2 = len(self.b1), len(self.b2)
        in_b1, in_b2 = key in self.b1, key in self.b2
        if in_b1:
            self.target = min(self.target + max(b2 / b1, 1), self.capacity)
        elif in_b2:
            self.target = max(self.target - max(b1 / b2, 1), 0)
        self.b1.pop(key, None)
        self.b2.pop(key, None)
        if len(self.t1) + len(self.t2) == self.capacity:
            self.make_room(ghost=in_b1 or in_b2, in_b2=in_b2)
        (self.t2 if in_b1 or in_b2 else self.t1)[key] = None
        return False

    def make_room(self, *, ghost: bool, in_b2: bool) -> None:
        if not ghost and len(self.t1) + len(self.b1) == self.capacity:
            if not self.b1:
                self.t1.popitem(last=False)
                return
            self.b1.popitem(last=False)
        elif not ghost and sum(map(len, (self.t1, self.t2, self.b1, self.b2))) >= 2 * self.capacity:
            self.b2.popitem(last=False)
        size = len(self.t1)
        if not self.t2 or (size and (size > self.target or (in_b2 and size == self.target))):
            self.b1[self.t1.popitem(last=False)[0]] = None
        else:
            self.b2[self.t2.popitem(last=False)[0]] = None


def arc(capacity: int, keys: list[int]) -> list[bool]:
    oracle = Oracle(capacity)
    return [oracle.access(key) for key in keys]


def test_hits_are_those_of_ordered_dicts() -> None:
    assert_as(arc, "arc")


def test_ghosts_stay_bounded_when_nobody_says_what_is_coming() -> None:
    owners, nobody = np.zeros(4, np.uint64), np.zeros(4, np.uint16)
    policy = make_policy("arc", 4, owners)
    for first in range(0, 4000, 4):
        owners[:] = range(first, first + 4)
        policy.insert(np.arange(4))
        assert len(policy.victims(4, nobody)) == 4
    state = policy.state
    assert state.ghost_sizes.sum() == len(state.ghost_keys)
