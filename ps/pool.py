"""Pool: runs a kernel over ranges of unique rows in several threads, with the same bits as in one.

Kernels release the GIL and take ``begin, end`` last; every row belongs to one range, so how the
rows are cut never shows in a result. (numba's own parallel=True aborts the process when two threads
enter it on the only threading layer that some installations have.)

Threads: "terrace-pool"; `run` may be called from one thread at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_DEADLINE_SECONDS = 600.0
_LEAST = 2048


class Pool:
    """``threads`` threads in all, the caller's included; 1 starts none."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._others = (
            ThreadPoolExecutor(threads - 1, thread_name_prefix="terrace-pool")
            if threads > 1
            else None
        )

    def run(self, kernel: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
        """``kernel(*arguments, begin, end)`` over 0 to ``count``: what each range returned."""
        parts = max(1, min(self.threads, count // _LEAST))
        edges = [count * part // parts for part in range(parts + 1)]
        ranges = list(itertools.pairwise(edges))
        others = [
            self._others.submit(kernel, *arguments, begin, end)
            for begin, end in ranges[1:]
            if self._others is not None
        ]
        mine = kernel(*arguments, *ranges[0])
        return [mine, *(other.result(_DEADLINE_SECONDS) for other in others)]

    def close(self) -> None:
        """Join the threads. Twice is fine."""
        if self._others is not None:
            self._others.shutdown()
