"""Reader: many blocks at once, at the depth of queue that an SSD wants.

Threads read straight from the file (`storage.tree`) and check what they bring; what they do not
find, or find damaged, is read once more through LMDB, which has the last word.

Threads: any may call `read`; the threads "terrace-read" are its own. Every wait has a deadline.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.block import Blocks, is_sound
from storage.checksum import checksums
from storage.errors import StoreError
from storage.tree import DEPTH, PAGE, fetch, roots

THREADS = 32
"""Reads that are under way at once, at most."""
_AT_ONCE = 4


class Reader:
    """Of the LMDB file in the folder ``path``. deadline: seconds that one `read` may take."""

    def __init__(self, path: Path, deadline: float) -> None:
        self._path, self._deadline = path, deadline
        self._fd = os.open(path / "data.mdb", os.O_RDONLY | os.O_CLOEXEC)
        # Reads are all over the file: what the system would read ahead is not wanted.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="terrace-read")
        # All of them now: a read should not wait for threads to start.
        started = threading.Barrier(THREADS + 1)
        for _ in range(THREADS):
            self._threads.submit(started.wait, deadline)
        started.wait(deadline)
        self._roots: tuple[int, dict[str, int]] = (-1, {})
        self._failure: StoreError | None = None

    def read(
        self, transaction: Any, database: Any, name: str, numbers: NDArray[np.int64], out: Blocks
    ) -> list[int]:
        """Read blocks, ascending, into ``out``: the indices of those that are damaged.

        transaction: an open one, which holds the snapshot. database: of this name, in it. Raises:
        StoreError when the disk gives nothing within the deadline, and from then on.
        """
        if self._failure is not None:
            raise self._failure
        number = transaction.id()
        if self._roots[0] != number:
            self._roots = (number, roots(self._fd, number))
        root = self._roots[1].get(name, 0)
        missing: Sequence[int] = range(len(numbers))
        if root > 0:
            missing = self._fetch(root, numbers, out)
        return [i for i in missing if not _get(transaction, database, int(numbers[i]), out, i)]

    def close(self) -> None:
        """Join the threads and close the file. Twice is fine."""
        self._threads.shutdown()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _fetch(self, root: int, numbers: NDArray[np.int64], out: Blocks) -> list[int]:
        """Read what the tree has: the indices of the others."""
        target = out.view(np.uint8).reshape(len(out), out.dtype.itemsize)
        found = np.zeros(len(numbers), np.bool_)
        taken = np.zeros(1, np.int64)

        def work() -> None:
            path = np.empty((DEPTH, PAGE // 2), np.uint16)
            scratch = np.empty(out.dtype.itemsize + 16, np.uint8)
            fetch(self._fd, root, numbers, target, found, taken, _AT_ONCE, path, scratch)

        count = min(THREADS, -(-len(numbers) // _AT_ONCE))
        futures = [self._threads.submit(work) for _ in range(count)]
        # All of them, even if one fails: they write to ``out``, which the caller uses again.
        if wait_for(futures, self._deadline).not_done:
            self._failure = StoreError(
                f"{self._path}: the disk gave nothing for {self._deadline:.0f} s; the last "
                f"checkpoint is good; check the device"
            )
            raise self._failure
        for future in futures:
            future.result()
        sound = found & (out["crc"] == checksums(target))
        sound &= out["number"] == numbers.astype(np.uint64)
        return np.flatnonzero(~sound).tolist()


def _get(transaction: Any, database: Any, number: int, out: Blocks, i: int) -> bool:
    """Read one block through LMDB; whether it is sound."""
    block = transaction.get(np.uint64(number).tobytes(), db=database)
    if block is None or len(block) != out.dtype.itemsize or not is_sound(block, number):
        return False
    out.view(np.uint8).reshape(len(out), out.dtype.itemsize)[i] = np.frombuffer(block, np.uint8)
    return True
