"""Lists: positions in one of several lists, for policies that have more than one queue.

A state that uses these kernels has the fields of `FIELDS`: list i's head is node i, position p
stands behind all heads, ``home[p]`` says in which list it is and ``sizes[i]`` how many are in i.
List 0, `LEAVING`, holds those that were demoted: they go first.

``cursors[i]`` is where `oldest` goes on looking in list i for somebody not pinned; it counts only
while victims are chosen, between `start` and the end of the call.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from storage.kernel import inlined
from storage.policies.layout import LINKS, Layout
from storage.policies.links import AFTER, BEFORE, link, replace, unlink

LEAVING = 0


def layout(count: int, **more: tuple[Any, int]) -> Layout:
    """Of ``count`` lists; more: further arrays by position."""
    by_position = {"links": (LINKS, count), "home": (np.uint8, 0)}
    return Layout(
        {**by_position, **more},
        {"sizes": (np.int64, count), "cursors": (np.int64, count), "limits": (np.int64, count)},
    )


@inlined
def clear(state: Any) -> None:
    """Make all lists empty."""
    for i in range(state.sizes.shape[0]):
        state.links[i, BEFORE] = state.links[i, AFTER] = i
        state.sizes[i] = 0


@inlined
def push(state: Any, which: Any, position: Any) -> None:
    """Put a position that is in no list into ``which``, as the newest."""
    node = position + state.sizes.shape[0]
    link(state.links, node, which)
    state.home[position] = which
    state.sizes[which] += 1
    if state.cursors[which] == which:
        state.cursors[which] = node


@inlined
def drop(state: Any, position: Any) -> None:
    """Take a position out of its list."""
    unlink(state.links, position + state.sizes.shape[0])
    state.sizes[state.home[position]] -= 1


@inlined
def shift(state: Any, which: Any, position: Any) -> None:
    """From the list where it is to the newest of ``which``."""
    drop(state, position)
    push(state, which, position)


@inlined
def spill(state: Any, source: Any, target: Any) -> None:
    """The oldest of a list that is not empty becomes the newest of another."""
    shift(state, target, np.int64(state.links[source, BEFORE]) - state.sizes.shape[0])


@inlined
def start(state: Any) -> None:
    """From now on `oldest` looks from the oldest of each list on."""
    for i in range(state.sizes.shape[0]):
        state.cursors[i] = state.links[i, BEFORE]


@inlined
def oldest(state: Any, which: Any, pins: Any) -> Any:
    """The next position of a list that is not pinned, oldest first, or -1. Each comes once, unless
    it is pushed again; the caller takes it out or leaves it."""
    heads = state.sizes.shape[0]
    node = state.cursors[which]
    while node != which and pins[node - heads] != 0:
        node = np.int64(state.links[node, BEFORE])
    if node == which:
        state.cursors[which] = which
        return np.int64(-1)
    state.cursors[which] = state.links[node, BEFORE]
    return node - heads


@inlined
def demote(state: Any, positions: Any) -> None:
    """Next to leave, the last of ``positions`` first."""
    for i in range(positions.shape[0]):
        drop(state, positions[i])
        link(state.links, positions[i] + state.sizes.shape[0], state.links[LEAVING, BEFORE])
        state.home[positions[i]] = LEAVING
        state.sizes[LEAVING] += 1


@inlined
def remove(state: Any, positions: Any) -> None:
    """Take out of their lists."""
    for i in range(positions.shape[0]):
        drop(state, positions[i])


@inlined
def move(state: Any, sources: Any, targets: Any) -> None:
    """Put ``targets`` where ``sources`` stand."""
    heads = state.sizes.shape[0]
    for i in range(sources.shape[0]):
        state.home[targets[i]] = state.home[sources[i]]
        replace(state.links, sources[i] + heads, targets[i] + heads)
