"""Fifo: first in, first out. One list of positions, which other policies are made of too.

Index 0 is the list's head, position p stands at p + 1: 8 bytes a position. Pinned positions are
stepped over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.kernel import inlined
from storage.policies.layout import LINKS, Layout
from storage.policies.links import BEFORE, link, replace, unlink

LIST = {"links": (LINKS, 1)}


class FifoArrays(NamedTuple):
    """Of Fifo, see there."""

    links: NDArray[np.int32]


class Fifo(FifoArrays):
    """See the module's docstring and `storage.policy.Policy`."""

    @staticmethod
    def layout(capacity: int) -> Layout:
        """The arrays."""
        return Layout(LIST)

    @staticmethod
    @inlined
    def begin(state: Any, capacity: Any) -> None:
        """Zeros are an empty list."""

    @staticmethod
    @inlined
    def expect(state: Any, keys: Any) -> None:
        """Makes no difference."""

    @staticmethod
    @inlined
    def insert(state: Any, positions: Any) -> None:
        """Newest, the last of ``positions`` first."""
        for i in range(positions.shape[0]):
            link(state.links, positions[i] + 1, 0)

    @staticmethod
    @inlined
    def touch(state: Any, positions: Any) -> None:
        """Makes no difference."""

    @staticmethod
    @inlined
    def demote(state: Any, positions: Any) -> None:
        """Next to leave, the last of ``positions`` first."""
        for i in range(positions.shape[0]):
            unlink(state.links, positions[i] + 1)
            link(state.links, positions[i] + 1, state.links[0, BEFORE])

    @staticmethod
    @inlined
    def remove(state: Any, positions: Any) -> None:
        """Take out of the list."""
        for i in range(positions.shape[0]):
            unlink(state.links, positions[i] + 1)

    @staticmethod
    @inlined
    def move(state: Any, sources: Any, targets: Any) -> None:
        """Put ``targets`` where ``sources`` stand."""
        for i in range(sources.shape[0]):
            replace(state.links, sources[i] + 1, targets[i] + 1)

    @staticmethod
    @inlined
    def resize(state: Any, capacity: Any) -> None:
        """Makes no difference."""

    @staticmethod
    @inlined
    def victims(state: Any, pins: Any, out: Any) -> Any:
        """Oldest first."""
        node = np.int64(state.links[0, BEFORE])
        found = 0
        while found < out.shape[0] and node != 0:
            newer = np.int64(state.links[node, BEFORE])
            if pins[node - 1] == 0:
                out[found] = node - 1
                found += 1
                unlink(state.links, node)
            node = newer
        return found
