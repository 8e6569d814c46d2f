"""Calls: how many calls a server works on.

A call counts from its coming on. One whose message does not follow at once counts no more until it
does: else a client that never sends it would keep others out.

Threads: any.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_EXPECTED_SECONDS = 0.1


class Calls:
    """waiting: how many of those that count wait for other clients now."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._waiting = waiting
        self._lock = threading.Lock()
        self._expected: deque[float] = deque()
        self._under_way = 0

    @property
    def busy(self) -> int:
        """Calls that are not over, without those that wait for other clients."""
        with self._lock:
            late = time.monotonic() - _EXPECTED_SECONDS
            while self._expected and self._expected[0] < late:
                self._expected.popleft()
            count = self._under_way + len(self._expected)
        return max(0, count - self._waiting())

    def expect(self) -> None:
        """A call has come; its message is on its way."""
        with self._lock:
            self._expected.append(time.monotonic())

    @contextmanager
    def one(self) -> Iterator[None]:
        """While a call is worked on, whose message is here."""
        with self._lock:
            if self._expected:
                self._expected.popleft()
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
