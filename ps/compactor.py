"""Compactor: the thread that frees disk space while training goes on.

It empties mostly stale segments and frees those that no cut needs any more, a segment at a time, so
that nobody waits long for the planner. It keeps to a budget of bytes a second while a log is at
most a third longer than its rows need, and goes as fast as it can above that. Whoever writes faster
than that does the same work itself (`keep_up`), and so does who needs room on a disk that is nearly
full (`reclaim`): the file has a bound, however slow the thread is.

Threads: "terrace-compact" is its own. `wake` from any thread; `paused`, `reclaim`, `keep_up` and
`close` from threads that do not have the planner's lock, or they would wait for each other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from ps.planner import Planner
from storage.compaction import Compaction
from storage.errors import ClosedError, DiskFullError, StoreError
from storage.ssd import SsdTier

Ends = Callable[[str], Sequence[int]]
_DEADLINE_SECONDS = 600.0
_FREED_AT_ONCE = 32


class Compactor:
    """See the module's docstring.

    ends: of a table, the ends of the cuts that are kept. spare: says how many bytes copies may fill
    before there is room again. bytes_per_second: read and written.
    """

    def __init__(
        self, planner: Planner, ends: Ends, spare: Callable[[], int], *, bytes_per_second: int
    ) -> None:
        self._planner = planner
        self._ends = ends
        self._spare = spare
        self._rate = bytes_per_second
        self._tables: list[Compaction] = []
        self._tiers: dict[str, SsdTier] = {}
        self._changed = threading.Condition()
        self._at_work = threading.Lock()
        self._due = self._closing = False
        self._pauses = 0
        self._thread = threading.Thread(target=self._run, name="terrace-compact", daemon=True)
        self._thread.start()

    def watch(self, tiers: Mapping[str, SsdTier]) -> None:
        """These are the tiers from now on; nothing may be under way.

        Nothing is done before `wake`: a store opened to look at, a backup say, stays as it is.
        """
        self._tiers = dict(tiers)
        self._tables = [Compaction(tier, self._turn) for tier in tiers.values()]

    def wake(self) -> None:
        """Rows were written, or a cut was made: there may be something to do."""
        with self._changed:
            self._due = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No row is moved meanwhile. From one `with` several threads may come; each counts."""
        with self._changed:
            self._pauses += 1
        try:
            with self._working():
                pass  # what was under way has ended
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    def reclaim(self, room: Callable[[], int]) -> bool:
        """Free something now that can be freed now; whether there was anything.

        room: says how many bytes copies may fill before. Raises: DiskFullError.
        """
        with self._working():
            if self._free():
                return True
            for name, compaction in zip(self._tiers, self._tables, strict=True):
                # Emptying what a cut names would only take more room, until that cut is given up.
                newest = max(self._ends(name), default=0)
                if compaction.step(room, everything=True, begin=newest):
                    self._free()
                    return True
        return False

    def keep_up(self) -> None:
        """Work off what the thread is behind with, if that is much; called by who made it so."""
        with contextlib.suppress(DiskFullError):
            while any(compaction.is_overdue for compaction in self._tables) and self._slice():
                pass

    def compact(self) -> Iterator[int]:
        """Work off all excess now, slice by slice: bytes read and written by each."""
        while done := self._slice():
            yield done

    def close(self) -> None:
        """Stop and join the thread. Twice is fine."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_DEADLINE_SECONDS)

    # -- private --------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                done = self._slice()
            except DiskFullError:
                continue  # whoever writes next will say so; freeing needs no room
            except (ClosedError, StoreError):
                return  # the store has stopped; its owner knows why
            if done:
                self.wake()
                self._yield(done)

    def _wait_for_work(self) -> bool:
        """Wait until there may be work; False when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or (self._due and not self._pauses))
            self._due = False
            return not self._closing

    def _yield(self, done: int) -> None:
        """Stand back for as long as these bytes take at the rate that was given."""
        if any(compaction.is_urgent for compaction in self._tables):
            return
        with self._changed:
            self._changed.wait_for(lambda: self._closing, done / self._rate)

    def _slice(self) -> int:
        """Free some segments, or empty one: bytes read and written, 0 if nothing was to be done."""
        with self._working():
            if self._pauses:
                return 0
            return self._free() or next((n for c in self._tables if (n := c.step(self._spare))), 0)

    def _free(self) -> int:
        """Free some segments: a number of bytes that stands for the work, 0 for none."""
        for name, tier in self._tiers.items():
            with self._turn():
                freed = tier.free(self._ends(name), most=_FREED_AT_ONCE)
            if freed:
                return freed * 64 * tier.shape.pages * 4096
        return 0

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        self._planner.ensure_own()
        if not self._at_work.acquire(timeout=_DEADLINE_SECONDS):
            raise StoreError(f"compaction has stood still for {_DEADLINE_SECONDS:.0f} s")
        try:
            yield
        finally:
            self._at_work.release()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self._planner, self._planner.changing():
            yield
