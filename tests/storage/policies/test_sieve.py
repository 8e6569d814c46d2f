"""Sieve: the paper's algorithm, access by access."""

from __future__ import annotations

import numpy as np

from storage.policy import make_policy
from tests.storage.replaying import assert_as


def sieve(capacity: int, keys: list[int]) -> list[bool]:
    """Algorithm 1 of the paper: the head of the list is its end here."""
    held: list[int] = []
    marked: set[int] = set()
    hand: int | None = None
    found = []
    for key in keys:
        found.append(key in held)
        if key in held:
            marked.add(key)
            continue
        if len(held) == capacity:
            at = 0 if hand is None else held.index(hand)
            while held[at] in marked:
                marked.remove(held[at])
                at = (at + 1) % len(held)
            hand = held[at + 1] if at + 1 < len(held) else None
            del held[at]
        held.append(key)
    return found


def test_hits_are_those_of_the_algorithm() -> None:
    assert_as(sieve, "sieve")


def test_the_hand_goes_on_when_whom_it_pointed_at_leaves_or_moves() -> None:
    policy, nobody = make_policy("sieve", 6), np.zeros(6, np.uint16)
    policy.insert(np.arange(5))
    policy.touch(np.array([0, 1]))
    assert policy.victims(1, nobody).tolist() == [2]  # the hand points at 3
    policy.remove(np.array([3, 4]))
    policy.insert(np.array([2]))
    assert policy.order().tolist() == [0, 1, 2]
    policy.move(np.array([0]), np.array([5]))
    assert sorted(policy.victims(9, nobody).tolist()) == [1, 2, 5]
