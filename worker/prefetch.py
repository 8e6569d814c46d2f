"""Prefetch: the rows of coming batches made resident while the current one computes.

A thread reads batches ahead and stages their working sets, at most ``depth`` beyond the one in use.
Rows that two batches share stand at one position, so results are those of a loop without prefetch.

What is resident is decided by the order of batches, never by timing: before batch m is staged, the
thread waits until the loop is done with batch m - depth - 1 and then unpins exactly what had been
released by that point. Where memory is short it waits for later batches too, so little RAM means
less depth, not an error or a deadlock; and if the working set then still does not fit, the
error is raised in the loop, at the batch it belongs to.

With a look-ahead of more than ``depth`` the keys of that many batches beyond the one in use are
known: rows that those need are evicted last, and what they lack is read in few large requests (see
`ps.coming`). While batch m is staged, m + 1 to m + lookahead - depth are known, never as many as
happen to be read. Where memory is short, look-ahead goes before a working set is refused.

Pins end with the batch: at the step, at the next batch if no step came, at break and at exceptions.
(What a graph or a gradient still needs stays pinned until that is gone: see `ps.workingset`.)

Modules that are in eval mode when the loop first names them, and all modules where gradients are
off as it starts, are not staged: evaluation reads through copies and changes nothing.

Threads: "terrace-prefetch", joined when the loop ends in any way.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ps.tables import Tables
from ps.workingset import Asked, Hold
from storage.errors import ConfigError, StoreError, WorkingSetError
from worker.call import Call, Caller, Staged, ask, stage

B = TypeVar("B")
_DEADLINE_SECONDS = 3600.0
_END: Any = object()

Keys = Callable[[B], Mapping[Any, Sequence[Any]]]


def prefetch(
    loader: Iterable[B], keys: Keys[B], *, depth: int = 2, lookahead: int | None = None
) -> Generator[B, None, None]:
    """The batches of ``loader``, each with its rows resident before it is handed out.

    keys: from a batch, the calls that will be made: for each module a list of argument tuples, such
    as ``{bag: [(b.ids, b.offsets)]}``. Calls with other arguments work too, only later. depth:
    batches made resident ahead; 0 stages each batch in the loop's own thread. lookahead: batches
    whose keys are known ahead, at least ``depth``; None: no more than that. Results do not depend
    on either.

    Raises: ConfigError; what ``loader`` and `Tables.stage` raise, at the batch concerned.
    """
    if depth < 0:
        raise ConfigError(f"prefetch: expected a depth of 0 or more, got {depth}")
    lookahead = depth if lookahead is None else lookahead
    if lookahead < depth:
        raise ConfigError(
            f"lookahead: expected at least the prefetch depth, {depth}, got {lookahead}; "
            f"the keys of batches that are made resident are known"
        )
    return _batches(loader, keys, depth, lookahead)


def _batches(
    loader: Iterable[B], keys: Keys[B], depth: int, lookahead: int
) -> Generator[B, None, None]:
    pipeline = _Pipeline(loader, keys, depth, lookahead)
    try:
        yield from pipeline.batches()
    finally:
        pipeline.close()


class _LoopEndedError(Exception):
    """The loop ended while the thread waited; seen by the thread only."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A batch, the calls it announces, and what they ask of the store."""

    batch: Any
    calls: Sequence[Call]
    asked: Mapping[str, Asked]


class _Pipeline:
    """State shared by the loop and the prefetch thread, guarded by one condition."""

    def __init__(self, loader: Iterable[B], keys: Keys[B], depth: int, lookahead: int) -> None:
        self._loader = iter(loader)
        self._keys = keys
        self._depth = depth
        self._beyond = lookahead - depth
        # Read and not staged, and how reading ended, once it has: the thread's own.
        self._read: deque[_Read] = deque()
        self._all_read = False
        self._fault: Exception | None = None
        self._changed = threading.Condition()
        self._ready: deque[tuple[Any, list[Staged], Hold | None]] = deque()
        self._error: BaseException | None = None
        self._finished = -1
        self._ended = self._closing = False
        self._store: Tables | None = None
        self._learning = torch.is_grad_enabled()
        self._stages: dict[Any, bool] = {}
        self._first_tick = 0
        self._hold: Hold | None = None
        self._thread: threading.Thread | None = None

    # -- the loop's side ------------------------------------------------------------------------

    def batches(self) -> Generator[Any, None, None]:
        """Each batch, current until the next is asked for."""
        if self._depth > 0:
            self._thread = threading.Thread(target=self._run, name="terrace-prefetch", daemon=True)
            self._thread.start()
        number = 0
        while True:
            if self._depth == 0:
                self._plan(number)
            item = self._next()
            if item is None:
                return
            batch, staged, self._hold = item
            if self._store is not None:
                self._store.tick = self._first_tick + number
                self._store.staged = staged
                if staged:
                    self._store.enter(staged[0].working_set)
            yield batch
            self._let_go(number)
            number += 1

    def close(self) -> None:
        """Stop the thread and release everything that is staged. Twice is fine."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_DEADLINE_SECONDS)
        self._let_go(self._finished + 1)
        while self._ready:
            _, _, hold = self._ready.popleft()
            if hold is not None:
                hold.drop()
        if self._store is not None and self._store.prefetching:
            self._store.end_prefetch()

    def _let_go(self, number: int) -> None:
        if self._store is not None:
            self._store.staged = []
        if self._hold is not None:
            self._hold.drop()
            self._hold = None
        with self._changed:
            self._finished = number
            self._changed.notify_all()

    def _next(self) -> tuple[Any, list[Staged], Hold | None] | None:
        with self._changed:
            self._wait(lambda: self._ready or self._ended or self._error)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None  # or the error's frames hold the error
            if error is not None:
                raise error
            return None

    # -- the thread's side ----------------------------------------------------------------------

    def _run(self) -> None:
        number = 0
        while not (self._ended or self._error or self._closing):
            self._plan(number)
            number += 1

    def _plan(self, number: int) -> None:
        """Stage batch ``number`` and hand it over; or say that the loop ends, and how."""
        try:
            self._read_ahead()
            if not self._read:
                fault, self._fault = self._fault, None  # as in `_next`
                self._end(fault)
                return
            read = self._read.popleft()
            staged = self._stage(number, read) if read.calls else []
        except _LoopEndedError:
            self._end(None)
        except BaseException as error:  # the thread's edge: raised again in the loop
            self._end(error)
        else:
            hold = staged[0].working_set.hold() if staged else None
            with self._changed:
                self._ready.append((read.batch, staged, hold))
                self._changed.notify_all()

    def _read_ahead(self) -> None:
        """Read until the batch whose turn it is and all that are to be known beyond it are here."""
        while len(self._read) <= self._beyond and not (self._all_read or self._closing):
            try:
                batch = next(self._loader, _END)
                self._all_read = batch is _END
                if not self._all_read:
                    self._add(batch)
            except Exception as error:  # raised when the batches before it have had their turn
                self._all_read, self._fault = True, error

    def _add(self, batch: Any) -> None:
        calls = self._calls(batch)
        asked: Mapping[str, Asked] = {}
        if calls:
            assert self._store is not None
            asked = ask(self._store, calls)
            if self._beyond:
                self._store.coming.announce(asked)
        self._read.append(_Read(batch, calls, asked))

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def _calls(self, batch: Any) -> list[Call]:
        calls = [
            Call.of(module, arguments)
            for module, uses in self._keys(batch).items()
            if self._learns(module)
            for arguments in uses
        ]
        if calls and self._store is None:
            self._adopt(calls[0].module)
        if any(call.module.store is not self._store for call in calls):
            raise ConfigError("prefetch: expected all modules over one store, got several stores")
        return calls

    def _learns(self, module: Any) -> bool:
        """Decided once: the loop may switch modes for an evaluation while the thread is ahead."""
        return self._stages.setdefault(module, self._learning and getattr(module, "training", True))

    def _adopt(self, module: Caller) -> None:
        store = module.store
        if store.prefetching:
            raise ConfigError("prefetch: this store is being prefetched by another loop; end it")
        store.begin_prefetch(beside=self._depth > 0)
        self._first_tick = store.tick + 1
        self._store = store

    def _stage(self, number: int, read: _Read) -> list[Staged]:
        """Stage with as much depth, and then look-ahead, as memory allows."""
        store = self._store
        assert store is not None
        # Where rows may be only so many steps behind, no batch is staged earlier than that.
        depth = self._depth if store.staleness is None else min(self._depth, store.staleness)
        done = number - depth - 1
        while True:
            self._await(done)
            store.settle(self._first_tick + done)
            if store.crowded and done < number - 1:
                done = number - 1
                continue
            try:
                return stage(
                    store, read.calls, read.asked, ahead=number - 1 - done, beside=self._depth > 0
                )
            except WorkingSetError:
                if done < number - 1:
                    done += 1
                elif not store.coming.give_up():
                    raise

    def _await(self, number: int) -> None:
        """Wait until the loop is done with batch ``number``."""
        with self._changed:
            self._wait(lambda: self._finished >= number or self._closing)
            if self._closing:
                raise _LoopEndedError

    def _wait(self, ready: Callable[[], Any]) -> None:
        if not self._changed.wait_for(ready, _DEADLINE_SECONDS):
            raise StoreError(f"prefetch: nothing moved for {_DEADLINE_SECONDS:.0f} s")
