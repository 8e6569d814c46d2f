"""Cutter: makes a cut a short while after the first change that no cut has, between steps.

This is durability "interval": a crash loses at most the interval and the time that a cut takes.

Threads: "terrace-cut" is its own. `changed` from any thread, `close` from one that has no lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from storage.errors import TerraceError

_DEADLINE_SECONDS = 600.0


class Cutter:
    """cut: makes one; it is called without locks. seconds: from the first change to the cut.

    failure: what a cut raised; the owner raises it at the next change.
    """

    def __init__(self, cut: Callable[[], None], seconds: float) -> None:
        self.failure: TerraceError | None = None
        self._cut = cut
        self._seconds = seconds
        self._since: float | None = None
        self._closing = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="terrace-cut", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Something is not durable yet. Raises: what the last cut raised, once."""
        failure, self.failure = self.failure, None
        with self._condition:
            if self._since is None:
                self._since = time.monotonic()
                self._condition.notify_all()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Stop and join the thread, without a cut. Twice is fine."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join(_DEADLINE_SECONDS)

    def _run(self) -> None:
        while self._wait():
            try:
                self._cut()
            except TerraceError as error:
                self.failure = error

    def _wait(self) -> bool:
        """Wait until a cut is due; False when there will be none."""
        with self._condition:
            self._condition.wait_for(lambda: self._closing or self._since is not None)
            if self._since is not None:
                left = self._since + self._seconds - time.monotonic()
                self._condition.wait_for(lambda: self._closing, max(0.0, left))
            # What changes from now on is the next cut's.
            self._since = None
            return not self._closing
