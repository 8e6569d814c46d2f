"""Lru: exact, against an OrderedDict."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.storage.replaying import assert_as
from tests.storage.test_policy import FAST, PolicyMachine


def lru(capacity: int, keys: list[int]) -> list[bool]:
    held: OrderedDict[int, None] = OrderedDict()
    found = []
    for key in keys:
        found.append(key in held)
        held[key] = None
        held.move_to_end(key)
        if len(held) > capacity:
            held.popitem(last=False)
    return found


class LruMachine(PolicyMachine):
    @invariant()
    def is_in_exact_order(self) -> None:
        assert self.policy.order().tolist() == list(self.model)


def test_hits_are_those_of_an_ordered_dict() -> None:
    assert_as(lru, "lru")


def test_the_least_recently_used_leaves_first_whatever_else_happens() -> None:
    run_state_machine_as_test(LruMachine, settings=FAST)
