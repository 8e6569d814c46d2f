"""Owner: the one thread that works in a shard's tables; all others hand it work and wait.

Work is done in the order in which it came, changes and reads alike. What waits is bounded, in
pieces and in bytes: more is refused at once, with a time after which to try again, rather than
answered when nobody waits for it any more. Work whose caller has left is not begun.

Threads: `run` from any but the owner's own; figures from any. A hand-over (`run` of nothing, there
and back; CPython 3.11, 2 cores with other work on them, medians of five in each of six runs) costs
24 to 51 us from one caller, 15 to 69 us a piece from 8.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from storage.errors import ClosedError, OverloadedError, StoreError, UnavailableError

T = TypeVar("T")
DEADLINE_SECONDS = 600.0
"""The longest that `close` waits for work to end."""
# Of the newest piece in the mean service time: it forgets what was 30 pieces ago.
_WEIGHT = 1 / 16
_LEAST_RETRY_SECONDS = 0.001


class _Piece:
    """Work that waits, and what became of it. ``done`` is held until it is over."""

    __slots__ = ("begun", "deadline", "done", "error", "result", "size", "work")

    def __init__(self, work: Callable[[], Any], size: int, deadline: float) -> None:
        self.work, self.size, self.deadline = work, size, deadline
        self.begun = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def finish(self, error: BaseException | None = None) -> None:
        if error is not None:
            self.error = error
        self.done.release()


class Owner:
    """most_bytes, most_items: of the work that waits. name: of the thread.

    ``queued``, ``queued_bytes``: what waits now. ``refused``: how often it was too full;
    ``dropped``: pieces whose deadline passed before their turn. ``busy_seconds`` of the thread in
    all; ``service_seconds``: what a piece took lately, a mean, 0 before the first.
    """

    def __init__(
        self, *, most_bytes: int, most_items: int = 256, name: str = "terrace-owner"
    ) -> None:
        self.queued_bytes = self.refused = self.dropped = 0
        self.busy_seconds = self.service_seconds = 0.0
        self._most_bytes, self._most_items = most_bytes, most_items
        self._served = False
        self._queue: deque[_Piece] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Pieces that wait for their turn."""
        return len(self._queue)

    def run(self, work: Callable[[], T], *, size: int, deadline: float) -> T:
        """What ``work()`` returns, or raises, in the owner's thread.

        size: bytes that it holds while it waits. deadline: of `time.monotonic`.
        Raises: OverloadedError at once, nothing was done; UnavailableError when the deadline
        passes, nothing was done if it says that this was before its turn; ClosedError.
        """
        assert threading.current_thread() is not self._thread, "the owner would wait for itself"
        piece = _Piece(work, size, deadline)
        with self._changed:
            self._admit(piece)
            self._changed.notify()
        # A lock takes no negative time, and no more than some 292 years.
        left = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        if not piece.done.acquire(timeout=left):
            self._leave(piece)
        if piece.error is not None:
            try:
                raise piece.error
            finally:
                # The traceback leads to this frame, which would keep all alive in a circle.
                del piece
        result: T = piece.result
        return result

    def close(self, drain: bool = True) -> None:
        """Finish what waits, or else fail it with ClosedError, and join the thread. Twice is fine.

        Raises: StoreError when the work does not end within `DEADLINE_SECONDS`.
        """
        assert threading.current_thread() is not self._thread, "the owner would wait for itself"
        with self._changed:
            self._closing = True
            if not drain:
                for piece in self._queue:
                    piece.finish(self._closed())
                self._queue.clear()
                self.queued_bytes = 0
            self._changed.notify()
        self._thread.join(DEADLINE_SECONDS)
        if self._thread.is_alive():
            raise StoreError(
                f"{self._thread.name}: expected its work to end within {DEADLINE_SECONDS:.0f} s; "
                f"it goes on; check the disk and kill the process"
            )

    # -- private --------------------------------------------------------------------------------

    def _admit(self, piece: _Piece) -> None:
        """Queue it, or raise why not; the caller has the lock."""
        if self._closing:
            raise self._closed()
        items, size = len(self._queue), self.queued_bytes
        # One that is larger than all is let in alone, or it would never be done.
        if items >= self._most_items or (items and size + piece.size > self._most_bytes):
            self.refused += 1
            seconds = items * self.service_seconds if self._served else 0.1
            raise OverloadedError(
                f"{self._thread.name}: expected room for {piece.size:,} bytes, but {items} of "
                f"{self._most_items} pieces and {size:,} of {self._most_bytes:,} bytes wait "
                f"already; try again in {seconds:.3f} s",
                retry_seconds=max(_LEAST_RETRY_SECONDS, seconds),
            )
        self._queue.append(piece)
        self.queued_bytes += piece.size

    def _leave(self, piece: _Piece) -> None:
        """The caller's deadline passed: raise it, unless the piece is over after all."""
        with self._changed:
            if piece.done.acquire(blocking=False):
                return
            if piece.begun:
                raise UnavailableError(
                    f"{self._thread.name}: the deadline passed while it was worked on; it may have "
                    f"been done; ask again with the same sequence"
                )
            self._queue.remove(piece)
            self._drop(piece)
        raise self._late()

    def _serve(self) -> None:
        while (piece := self._next()) is not None:
            began = time.perf_counter()
            try:
                piece.result = piece.work()
            except BaseException as error:  # the caller's, whatever it is; the thread goes on
                piece.error = error
            taken = time.perf_counter() - began
            self.busy_seconds += taken
            rest = taken - self.service_seconds
            self.service_seconds += rest * _WEIGHT if self._served else rest
            self._served = True
            piece.finish()
            # Idle, it would hold a whole push, and an error's traceback would lead to it.
            del piece

    def _next(self) -> _Piece | None:
        """The next piece that somebody waits for; None when there will be none."""
        with self._changed:
            while True:
                while not self._queue:
                    if self._closing:
                        return None
                    self._changed.wait()
                piece = self._queue.popleft()
                if piece.deadline > time.monotonic():
                    self.queued_bytes -= piece.size
                    piece.begun = True
                    return piece
                self._drop(piece)
                piece.finish(self._late())

    def _drop(self, piece: _Piece) -> None:
        self.queued_bytes -= piece.size
        self.dropped += 1

    def _late(self) -> UnavailableError:
        return UnavailableError(
            f"{self._thread.name}: the deadline passed before its turn; nothing was done; try again"
        )

    def _closed(self) -> ClosedError:
        return ClosedError(f"{self._thread.name}: was given work after close()")
