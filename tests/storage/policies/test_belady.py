"""Belady: against a search of the whole future, and that nobody does better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.policies.belady import NEVER, make_belady, next_uses, schedule
from storage.policy import POLICIES, Policy
from storage.replay import Replay
from tests.storage.replaying import skewed


def belady(capacity: int, keys: list[int]) -> list[bool]:
    held: set[int] = set()
    found = []
    for now, key in enumerate(keys):
        found.append(key in held)
        if key not in held and len(held) == capacity:
            rest = keys[now + 1 :]
            held.remove(max(held, key=lambda one: rest.index(one) if one in rest else 1 << 40))
        held.add(key)
    return found


def best(capacity: int, keys: list[int]) -> Replay:
    codes = np.unique(keys, return_inverse=True)[1]
    nexts = next_uses(codes, int(codes.max()) + 1)
    return Replay(Policy.of(make_belady(capacity, len(keys), nexts), capacity), capacity)


@pytest.mark.parametrize("capacity", [1, 2, 7, 40])
def test_hits_are_as_many_as_a_search_of_the_future_finds(capacity: int) -> None:
    keys = skewed(capacity, 1500, 120)
    hits = best(capacity, keys).run(np.array(keys, np.uint64))
    assert hits == sum(belady(capacity, keys))


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_does_better(name: str) -> None:
    keys = skewed(0, 3000, 200)
    array = np.array(keys, np.uint64)
    assert Replay(name, 30).run(array) <= best(30, keys).run(array)


@given(
    st.lists(st.integers(0, 299), unique=True, min_size=1, max_size=40),
    st.sets(st.integers(0, 39)),
    st.integers(0, 45),
)
def test_who_is_due_last_leaves_first_and_pins_are_kept(
    dues: list[int], pinned: set[int], count: int
) -> None:
    policy = Policy.of(make_belady(40, 300), 40)
    policy.insert(np.arange(40))
    times = np.array(dues)
    schedule(policy.state, np.arange(len(times)), times)
    pins = np.zeros(40, np.uint16)
    pins[list(pinned)] = 1
    never = [p for p in range(len(dues), 40)]
    order = never + [int(p) for p in np.argsort(-times)]
    expected = [p for p in order if p not in pinned][:count]
    assert policy.victims(count, pins).tolist() == expected
    assert sorted(policy.order().tolist()) == sorted(set(range(40)) - set(expected))


def test_next_uses_are_those_of_the_same_key() -> None:
    assert next_uses(np.array([0, 1, 0, 2, 1]), 3).tolist() == [2, 4, NEVER, NEVER, NEVER]
