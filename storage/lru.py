"""Lru: exact least recently used. Pinned positions were used lately, so they sit at the other end
of the queue and the walk over them stays short.

Threads: one owner.
"""

from __future__ import annotations

from typing import Any

import numba as nb

from storage.queue import Queue, link, unlink
from storage.rows import Positions


@nb.njit(nogil=True, cache=True)
def _touch_all(before: Any, after: Any, positions: Any) -> None:
    for i in range(positions.shape[0]):
        unlink(before, after, positions[i] + 1)
        link(before, after, positions[i] + 1, 0)


class Lru(Queue):
    """See the module's docstring: a `Queue` in which a used position becomes the newest."""

    def touch(self, positions: Positions) -> None:
        """Newest, the last of ``positions`` first."""
        _touch_all(self._before, self._after, positions)
