"""Planner: whose turn it is to change the tiers of a store, and whether anybody may any more.

One lock guards all tiers. It is refused after `close`, in a fork of the process that opened the
store, and once an error or an interrupt came in the middle of a change: memory may then not be what
it should, and nothing that follows may make it durable.

Threads: any.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from storage.errors import (
    ClosedError,
    ConfigError,
    CorruptError,
    DiskFullError,
    StoreError,
    WorkingSetError,
)

_DEADLINE_SECONDS = 600.0
# Found before anything changes, or between two changes that are whole.
_HARMLESS = (ConfigError, WorkingSetError, CorruptError, DiskFullError)


class Planner:
    """``with planner:`` is one owner's turn; reentrant. path: names the store in messages.

    closed: nobody gets a turn any more. failure: what stopped the store, or None.
    """

    def __init__(self, path: object) -> None:
        self.closed = False
        self.failure: BaseException | None = None
        self._path = path
        self._process = os.getpid()
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._take()
        try:
            self.ensure_usable()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """A turn that closed and stopped stores give too: for closing them."""
        self._take()
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """An error inside that may have cut a change in two stops the store."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, _HARMLESS):
                self.failure = error
            raise

    def ensure_usable(self) -> None:
        """Raises: ClosedError after close; StoreError in a fork, or after an error that stopped it.

        Takes no lock.
        """
        self.ensure_own()
        if self.closed:
            raise ClosedError(f"{self._path}: the store is closed")
        if self.failure is not None:
            reason = str(self.failure) or type(self.failure).__name__
            raise StoreError(
                f"{self._path}: the store stopped after an error ({reason}); close it, open it "
                f"again and resume()"
            ) from self.failure

    def _take(self) -> None:
        self.ensure_own()
        if not self._lock.acquire(timeout=_DEADLINE_SECONDS):
            raise StoreError(
                f"{self._path}: another thread has kept the store for {_DEADLINE_SECONDS:.0f} s"
            )

    def ensure_own(self) -> None:
        """Raises: StoreError in a fork of the process that opened the store. Takes no lock."""
        # Before the lock is touched: in a fork, a thread that does not exist there may hold it.
        if os.getpid() != self._process:
            raise StoreError(
                f"{self._path}: process {self._process} opened this store, {os.getpid()} is "
                f"its fork (a DataLoader worker?); look rows up in the parent"
            )
