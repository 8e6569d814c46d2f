"""Calls: the threads that answer calls, and how many of them have work to do.

Threads: any.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Calls(ThreadPoolExecutor):
    """gRPC's threads. waiting: how many of the calls in them wait for other clients now."""

    def __init__(self, threads: int, waiting: Callable[[], int]) -> None:
        super().__init__(threads, thread_name_prefix="terrace-serve")
        self._waiting = waiting
        self._counting = threading.Lock()
        self._under_way = 0

    @property
    def busy(self) -> int:
        """Calls that were let in and are not over, without those that wait for other clients."""
        return max(0, self._under_way - self._waiting())

    def submit(self, call: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        """As of any pool. A call that is cancelled before it has begun ends here as well."""
        with self._counting:
            self._under_way += 1
        try:
            future = super().submit(call, *args, **named)
        except BaseException:
            self._ended()
            raise
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _future: object = None) -> None:
        with self._counting:
            self._under_way -= 1
