"""Lru: exact least recently used. Pinned positions were used lately, so they sit at the other end
of the list and the walk over them stays short.
"""

from __future__ import annotations

from typing import Any

from storage.kernel import inlined
from storage.policies.fifo import Fifo
from storage.policies.links import AFTER, link, unlink


class Lru(Fifo):
    """See the module's docstring: a `Fifo` in which a used position becomes the newest."""

    @staticmethod
    @inlined
    def touch(state: Any, positions: Any) -> None:
        """Newest, the last of ``positions`` first."""
        for i in range(positions.shape[0]):
            node = positions[i] + 1
            if state.links[0, AFTER] != node:
                unlink(state.links, node)
                link(state.links, node, 0)
