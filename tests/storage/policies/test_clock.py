"""Clock: a list in which marked keys get a second chance at the other end."""

from __future__ import annotations

import numpy as np

from storage.policy import make_policy
from tests.storage.replaying import assert_as


def clock(capacity: int, keys: list[int]) -> list[bool]:
    held: list[int] = []
    marked: set[int] = set()
    found = []
    for key in keys:
        found.append(key in held)
        if key in held:
            marked.add(key)
            continue
        while len(held) == capacity:
            oldest = held.pop(0)
            if oldest in marked:
                marked.remove(oldest)
                held.append(oldest)
        held.append(key)
    return found


def test_hits_are_those_of_the_algorithm() -> None:
    assert_as(clock, "clock")


def test_a_pinned_position_keeps_its_place_and_its_mark() -> None:
    policy, pins = make_policy("clock", 3), np.array([1, 0, 0], np.uint16)
    policy.insert(np.arange(3))
    policy.touch(np.array([0]))
    assert policy.victims(1, pins).tolist() == [1]
    assert policy.victims(3, np.zeros(3, np.uint16)).tolist() == [2, 0]
