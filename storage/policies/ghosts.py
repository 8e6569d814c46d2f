"""Ghosts: keys that have left the cache lately, in order, for policies that learn from it.

A state that uses these kernels has the fields of `layout`: an index from key to node
(`storage.index`), and the nodes in lists as in `storage.policies.links`. List `FREE` holds the
unused nodes, `RECALLED` those whose key is coming back (`expect`-ed and not yet inserted); the
policy's own lists follow. A resident key is no ghost.

27 bytes a ghost, held as long as the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from storage.index import EMPTY, erase_one, find_one, insert_one, slots_for
from storage.kernel import inlined
from storage.policies.layout import LINKS
from storage.policies.links import AFTER, BEFORE, link, unlink

FREE, RECALLED, FIRST = 0, 1, 2
_SPARE = 64


def fields(most: int, count: int = 1) -> dict[str, tuple[Any, int]]:
    """The arrays of ``most`` ghosts in ``count`` lists of the policy's."""
    nodes, heads = most + _SPARE, FIRST + count
    return {
        "ghost_slots": (np.uint64, slots_for(nodes)), "ghost_keys": (np.uint64, nodes),
        "ghost_links": (LINKS, heads + nodes),
        "ghost_home": (np.uint8, nodes), "ghost_sizes": (np.int64, heads),
    }  # fmt: skip


@inlined
def begin(state: Any) -> None:
    """No ghosts: all nodes are free."""
    state.ghost_slots[:] = EMPTY
    heads = state.ghost_sizes.shape[0]
    for i in range(heads):
        state.ghost_links[i, BEFORE] = state.ghost_links[i, AFTER] = i
        state.ghost_sizes[i] = 0
    for node in range(state.ghost_keys.shape[0]):
        _push(state, FREE, node)


@inlined
def _push(state: Any, which: Any, node: Any) -> None:
    link(state.ghost_links, node + state.ghost_sizes.shape[0], which)
    state.ghost_home[node] = which
    state.ghost_sizes[which] += 1


@inlined
def _drop(state: Any, node: Any) -> None:
    unlink(state.ghost_links, node + state.ghost_sizes.shape[0])
    state.ghost_sizes[state.ghost_home[node]] -= 1


@inlined
def _free(state: Any, node: Any) -> None:
    """Forget a ghost."""
    erase_one(state.ghost_slots, state.ghost_keys, node)
    _drop(state, node)
    _push(state, FREE, node)


@inlined
def forget_oldest(state: Any, which: Any) -> None:
    """Let the oldest ghost of a list go, if there is one."""
    if state.ghost_sizes[which]:
        _free(state, np.int64(state.ghost_links[which, BEFORE]) - state.ghost_sizes.shape[0])


@inlined
def remember(state: Any, which: Any, key: Any) -> None:
    """A key that is no ghost becomes the newest of a list."""
    if state.ghost_sizes[FREE] == 0:
        # Only where more are recalled at once than there are spare nodes.
        longest = which
        for i in range(RECALLED, state.ghost_sizes.shape[0]):
            if state.ghost_sizes[i] > state.ghost_sizes[longest]:
                longest = i
        forget_oldest(state, longest)
    node = np.int64(state.ghost_links[FREE, BEFORE]) - state.ghost_sizes.shape[0]
    _drop(state, node)
    _push(state, which, node)
    state.ghost_keys[node] = key
    insert_one(state.ghost_slots, key, node)


@inlined
def forget_recalled(state: Any) -> None:
    """Who was expected and did not come is a ghost no more."""
    while state.ghost_sizes[RECALLED]:
        forget_oldest(state, RECALLED)


@inlined
def recall(state: Any, key: Any) -> Any:
    """The list that a key is a ghost in, 0 if in none; it is a ghost there no more, and `recalled`
    will know it."""
    node = find_one(state.ghost_slots, state.ghost_keys, key)
    if node < 0:
        return np.int64(0)
    which = np.int64(state.ghost_home[node])
    _drop(state, node)
    _push(state, RECALLED, node)
    return which


@inlined
def recalled(state: Any, key: Any) -> Any:
    """Whether a key that is coming in was a ghost; it is forgotten."""
    node = find_one(state.ghost_slots, state.ghost_keys, key)
    if node < 0:
        return False
    _free(state, node)
    return True
