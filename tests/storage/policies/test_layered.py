"""Layered: an ordered dict, and a dict of counts for whom it gives up."""

from __future__ import annotations

from collections import Counter, OrderedDict

import numpy as np

from storage.policy import make_policy
from tests.storage.replaying import assert_as


def lru_lfu(capacity: int, keys: list[int]) -> list[bool]:
    most = max(capacity // 2, 1)
    recent: OrderedDict[int, None] = OrderedDict()
    frequent: dict[int, tuple[int, int]] = {}
    uses: Counter[int] = Counter()
    found = []
    for now, key in enumerate(keys):
        found.append(key in recent or key in frequent)
        if not found[-1] and len(recent) + len(frequent) == capacity:
            if frequent:
                victim = min(frequent, key=lambda one: frequent[one])
                del frequent[victim]
            else:
                victim = recent.popitem(last=False)[0]
            del uses[victim]
        uses[key] += 1
        frequent.pop(key, None)
        recent[key] = None
        recent.move_to_end(key)
        if len(recent) > most:
            fallen = recent.popitem(last=False)[0]
            frequent[fallen] = (uses[fallen], now)
    return found


def test_hits_are_those_of_dicts() -> None:
    assert_as(lru_lfu, "lru-lfu")


def test_what_is_hot_survives_a_scan_in_the_lfu_part() -> None:
    policy, nobody = make_policy("lru-lfu", 8), np.zeros(8, np.uint16)
    policy.insert(np.array([0]))
    for _ in range(5):
        policy.touch(np.array([0]))
    policy.insert(np.arange(1, 8))
    assert policy.victims(3, nobody).tolist() == [1, 2, 3]
    assert policy.order().tolist() == [0, 4, 5, 6, 7]
