"""Ghosts: against ordered dicts, with more recalled at once than there are nodes."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from storage.policies.ghosts import (
    FIRST,
    FREE,
    RECALLED,
    forget_oldest,
    forget_recalled,
    recall,
    recalled,
    remember,
)
from storage.policy import make_policy


def test_ghosts_come_and_go_as_in_ordered_dicts() -> None:
    state, rng = make_policy("arc", 30).state, np.random.default_rng(0)
    lists: list[OrderedDict[int, None]] = [OrderedDict(), OrderedDict()]
    for _ in range(4000):
        key, which = int(rng.integers(200)), int(rng.integers(2))
        at = next((i for i, ghosts in enumerate(lists) if key in ghosts), None)
        if at is not None:
            del lists[at][key]
            if which:
                assert recall(state, np.uint64(key)) == FIRST + at
                assert state.ghost_sizes[RECALLED] == 1
            assert recalled(state, np.uint64(key))
        else:
            assert recall(state, np.uint64(key)) == 0
            assert not recalled(state, np.uint64(key))
            if len(lists[which]) == 30:
                lists[which].popitem(last=False)
                forget_oldest(state, FIRST + which)
            lists[which][key] = None
            remember(state, FIRST + which, np.uint64(key))
        assert state.ghost_sizes[FIRST:].tolist() == [len(ghosts) for ghosts in lists]


def test_who_does_not_come_is_forgotten_and_nodes_never_run_out() -> None:
    state = make_policy("2q", 4).state
    nodes = len(state.ghost_keys)
    for key in range(3 * nodes):
        remember(state, FIRST, np.uint64(key))
        assert recall(state, np.uint64(key)) == FIRST
    assert state.ghost_sizes[RECALLED] == nodes
    forget_recalled(state)
    assert state.ghost_sizes[FREE] == nodes
    assert not recalled(state, np.uint64(3 * nodes - 1))
