"""Lfu: counts and arrivals, against a dict of both."""

from __future__ import annotations

import numpy as np
import pytest

from storage.policies import lfu as module
from storage.policy import make_policy
from tests.storage.replaying import assert_as, hits, skewed


def lfu(capacity: int, keys: list[int]) -> list[bool]:
    """Evicts the least (uses, when it came to that count)."""
    held: dict[int, tuple[int, int]] = {}
    found = []
    for now, key in enumerate(keys):
        found.append(key in held)
        uses = held[key][0] + 1 if key in held else 1
        if key not in held and len(held) == capacity:
            del held[min(held, key=lambda one: held[one])]
        held[key] = (uses, now)
    return found


def test_hits_are_those_of_a_dict_of_counts() -> None:
    assert_as(lfu, "lfu")


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_with_too_few_groups_nobody_is_lost(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    monkeypatch.setattr(module, "_MOST_GROUPS", groups)
    keys = skewed(0, 3000, 120)
    found = hits("lfu", 40, keys)
    assert sum(found) > 0.8 * sum(lfu(40, keys))


def test_counts_start_anew_for_who_comes_back_and_for_who_is_demoted() -> None:
    policy, nobody = make_policy("lfu", 4), np.zeros(4, np.uint16)
    policy.insert(np.arange(4))
    for _ in range(3):
        policy.touch(np.array([0, 1]))
    policy.remove(np.array([0]))
    policy.insert(np.array([0]))
    assert policy.order().tolist() == [2, 3, 0, 1]
    policy.demote(np.array([1]))
    policy.touch(np.array([1]))
    assert policy.victims(4, nobody).tolist() == [2, 3, 0, 1]
