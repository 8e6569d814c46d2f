"""Every policy keeps its contract. Which goes first is told by each one's own tests."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from storage.errors import ConfigError
from storage.policy import POLICIES, make_policy

CAPACITY = 12
positions = st.lists(st.integers(0, CAPACITY - 1), unique=True, max_size=CAPACITY)


def array(chosen: list[int]) -> np.ndarray:
    return np.array(chosen, np.int64)


class PolicyMachine(RuleBasedStateMachine):
    """Any policy: who is in it, that pins are respected, and that `order` says who goes first."""

    name = "lru"

    def __init__(self) -> None:
        super().__init__()
        self.owners = np.arange(CAPACITY, dtype=np.uint64)
        self.policy = make_policy(self.name, CAPACITY, self.owners)
        self.capacity = CAPACITY
        # Least recent first: `move_to_end(last=False)` is a demotion.
        self.model: OrderedDict[int, None] = OrderedDict()

    def held(self, chosen: list[int]) -> list[int]:
        return [p for p in chosen if p in self.model]

    def free(self, chosen: list[int]) -> list[int]:
        return [p for p in chosen if p not in self.model and p < self.capacity]

    @rule(chosen=positions, keys=st.permutations(range(2 * CAPACITY)), expected=st.booleans())
    def insert(self, chosen: list[int], keys: list[int], expected: bool) -> None:
        """Keys that are not here, some of which were: a policy may remember them."""
        free = self.free(chosen)
        resident = self.owners[list(self.model)].tolist()
        coming = [key for key in keys if key not in resident][: len(free)]
        if expected:
            self.policy.expect(np.array(coming, np.uint64))
        self.owners[free[: len(coming)]] = coming
        self.policy.insert(array(free[: len(coming)]))
        self.model.update(dict.fromkeys(free[: len(coming)]))

    @rule(keys=st.lists(st.integers(0, 2 * CAPACITY), unique=True))
    def expect_in_vain(self, keys: list[int]) -> None:
        resident = self.owners[list(self.model)].tolist()
        self.policy.expect(np.array([k for k in keys if k not in resident], np.uint64))

    @rule(chosen=positions)
    def touch(self, chosen: list[int]) -> None:
        self.policy.touch(array(self.held(chosen)))
        for position in self.held(chosen):
            self.model.move_to_end(position)

    @rule(chosen=positions)
    def demote(self, chosen: list[int]) -> None:
        self.policy.demote(array(self.held(chosen)))
        for position in self.held(chosen):
            self.model.move_to_end(position, last=False)

    @rule(chosen=positions)
    def remove(self, chosen: list[int]) -> None:
        gone = self.held(chosen)
        self.policy.remove(array(gone))
        for position in gone:
            del self.model[position]

    @rule(sources=positions, places=positions)
    def move(self, sources: list[int], places: list[int]) -> None:
        pairs = dict(zip(self.held(sources), self.free(places), strict=False))
        self.policy.move(array(list(pairs)), array(list(pairs.values())))
        self.owners[list(pairs.values())] = self.owners[list(pairs)]
        self.model = OrderedDict((pairs.get(p, p), None) for p in self.model)

    @rule(capacity=st.integers(1, CAPACITY))
    def resize(self, capacity: int) -> None:
        if capacity <= self.capacity and all(p < capacity for p in self.model):
            self.policy.resize(capacity)
            self.capacity = capacity

    @rule(count=st.integers(0, CAPACITY + 2), pinned=positions)
    def victims(self, count: int, pinned: list[int]) -> None:
        pins = np.zeros(CAPACITY, np.uint16)
        pins[pinned] = 3
        order = [p for p in self.policy.order().tolist() if p not in pinned]
        chosen = self.policy.victims(count, pins).tolist()
        if not pinned:
            assert chosen == order[: len(chosen)]
        loose = [p for p in self.model if p not in pinned]
        assert len(chosen) == min(count, len(loose))
        assert set(chosen) <= set(loose)
        for position in chosen:
            del self.model[position]

    @rule(chosen=positions)
    def demoted_ones_go_first(self, chosen: list[int]) -> None:
        held = self.held(chosen)
        self.policy.demote(array(held))
        for position in held:
            self.model.move_to_end(position, last=False)
        assert self.policy.order().tolist()[: len(held)] == held[::-1]

    @invariant()
    def holds_what_was_inserted(self) -> None:
        assert sorted(self.policy.order().tolist()) == sorted(self.model)


FAST = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_holds_what_was_inserted_and_never_evicts_a_pinned_position(name: str) -> None:
    machine = type("Machine", (PolicyMachine,), {"name": name})
    run_state_machine_as_test(machine, settings=FAST)


@pytest.mark.parametrize("name", POLICIES)
def test_what_a_policy_evicts_is_a_function_of_the_accesses(name: str) -> None:
    def replay() -> list[int]:
        rng, policy = np.random.default_rng(3), make_policy(name, 50)
        policy.insert(np.arange(50))
        for _ in range(20):
            policy.touch(rng.permutation(50)[:20])
        return policy.victims(50, np.zeros(50, np.uint16)).tolist()

    assert replay() == replay()


def test_an_unknown_policy_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(ConfigError, match=r"lru.*lfu.*'random'"):
        make_policy("random", 1)
