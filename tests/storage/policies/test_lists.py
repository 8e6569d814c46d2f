"""Lists: what `oldest` finds while lists change under it."""

from __future__ import annotations

import numpy as np

from storage.policies.lists import LEAVING, demote, oldest, push, shift, spill, start
from storage.policy import make_policy


def test_each_position_is_found_once_oldest_first_unless_it_is_pushed_again() -> None:
    state, pins = make_policy("slru", 8).state, np.zeros(8, np.uint16)
    for position in range(4):
        push(state, 1, position)
    pins[1] = 1
    start(state)
    assert oldest(state, 1, pins) == 0
    shift(state, 1, 0)
    assert [oldest(state, 1, pins) for _ in range(4)] == [2, 3, 0, -1]
    push(state, 1, 5)
    assert [oldest(state, 1, pins) for _ in range(2)] == [5, -1]


def test_sizes_follow_who_is_where() -> None:
    state = make_policy("slru", 8).state
    for position in range(3):
        push(state, 2, position)
    spill(state, 2, 1)
    demote(state, np.array([1]))
    assert state.sizes.tolist()[:3] == [1, 1, 1]
    assert state.home[:3].tolist() == [1, LEAVING, 2]
