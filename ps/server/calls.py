"""Calls: how many calls a server works on.

A call counts once its message is here: one whose message does not come keeps nobody else out.

Threads: any.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Calls:
    """waiting: how many of those that count wait for other clients now."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._waiting = waiting
        self._lock = threading.Lock()
        self._under_way = 0

    @property
    def busy(self) -> int:
        """Calls that are not over, without those that wait for other clients."""
        return max(0, self._under_way - self._waiting())

    @contextmanager
    def one(self) -> Iterator[None]:
        """While a call is worked on."""
        with self._lock:
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
