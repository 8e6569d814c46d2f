"""Outbox: a worker's changes on their way to one shard, in order, each applied once.

Every change gets the next sequence and is sent until the shard has answered it; two are on their
way at once, so that one is applied while the next is carried. Where the shard may lose what it
answered (durability "interval"), a change stays here until the shard says that it is durable, and
is repeated when the shard comes back without it. All that is bounded in bytes: at half the bound
the shard is asked for a cut, at the bound `put` waits.

A shard that was started anew waits for all its clients, so one that has nothing to send asks now
and then whether the shard still knows it.

What is on its way belongs to a *turn*, which ends when changes are sent again from an earlier one
on; an answer of an older turn says nothing about this one. A *life* is one incarnation's.

Threads: "terrace-push" sends; `put` and the rest from any. Turns and lives may end at any moment:
whoever pulls may be the one who opens the session again (`_reopened`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ps.client.link import PASSING, Link, Patience
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame
from ps.wire.status import ReopenError
from storage.errors import LostError, ShardError, TerraceError, UnavailableError

_IN_FLIGHT = 2
_QUIET_SECONDS = 5.0
_CUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class _Entry:
    """A change as it is sent."""

    sequence: int
    method: str
    data: bytes


@dataclass(frozen=True, slots=True)
class _Flight:
    """One attempt to send an entry. seen: the link's openings before it."""

    entry: _Entry
    future: Any
    turn: int
    seen: int


class Outbox:
    """See the module's docstring; of ``link``, whose session is open. most_bytes: of all changes
    that are here; a larger one may be here alone. quiet_seconds: without anything to send, after
    which the shard is asked.

    skipped: rows that the shard left out. wants_checkpoint: the shard's disk is nearly full.
    """

    def __init__(
        self, link: Link, *, most_bytes: int, quiet_seconds: float = _QUIET_SECONDS
    ) -> None:
        self.skipped = 0
        self.wants_checkpoint = False
        self._link = link
        self._most_bytes = most_bytes
        self._quiet_seconds = quiet_seconds
        self._keeps = False
        self._changed = threading.Condition()
        self._entries: deque[_Entry] = deque()  # all that may have to be sent again
        self._next = 0  # index there of the first that is not on its way
        self._bytes = 0
        self.last = self._answered = self._durable = 0
        self._failure: TerraceError | None = None
        self._closing = self._wanted = False
        self._life = self._turn = 0
        self._counted = 0  # the last whose skipped rows are in the sum: some are answered twice
        self._patience: Patience | None = None
        self._flying: deque[_Flight] = deque()
        link.awaited, link.reopened = lambda: self.last, self._reopened
        self._thread = threading.Thread(target=self._run, name="terrace-push", daemon=True)
        self._thread.start()

    def put(self, method: str, frame: Frame[Any]) -> None:
        """Queue a change; its sequence and session are set here. Waits where too much is queued.

        Raises: what stopped the outbox; UnavailableError when nothing moves for the link's timeout.
        """
        with self._changed:
            self._ensure_sound()
            frame.message.sequence = self.last + 1
            frame.message.session.CopyFrom(self._link.identity.session)
            data = frame.pack()
            self._make_room(len(data))
            self.last += 1
            self._entries.append(_Entry(self.last, method, data))
            self._bytes += len(data)
            self._changed.notify_all()

    def flush(self) -> None:
        """Return when the shard has answered all that was put. Raises: as `put`."""
        with self._changed:
            last = self.last
            self._wait(lambda: self._answered >= last, "answers")

    @property
    def bytes(self) -> int:
        """Bytes of the changes that are here."""
        return self._bytes

    def forget(self) -> None:
        """Nothing that was put counts any more: a new incarnation begins. The link stands still."""
        with self._changed:
            self._life += 1
            self._entries.clear()
            self._bytes = self.last = self._answered = self._durable = self._counted = 0
            self._failure = self._patience = None
            self._wanted = False
        self._start_over()

    def close(self) -> None:
        """Stop the thread, whatever is queued. Twice is fine."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(self._link.timeout_seconds)

    # -- the thread's ---------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                called = self._changed.wait_for(self._has_work, self._quiet_seconds)
                if self._closing:
                    return
                quiet = not called and self._failure is None
                full, life = self._full, self._life
            try:
                if quiet:
                    self._show_up()
                if full:
                    self._cut(life)
                self._send()
                self._receive()
            except Exception as error:  # the thread's edge: raised at the next call
                self._fail(error, life)

    def _fail(self, error: Exception, life: int) -> None:
        if not isinstance(error, TerraceError):
            kind = type(error).__name__
            error = ShardError(f"{self._link.name}: sending changes failed ({kind}: {error})")
        with self._changed:
            if life != self._life:
                return  # of an incarnation that counts no more
            self._failure = error
        self._start_over()

    def _has_work(self) -> bool:
        if self._closing:
            return True
        if self._failure is not None:
            return False
        done = self._flying and self._flying[0].future.done()
        free = self._next < len(self._entries) and len(self._flying) < _IN_FLIGHT
        return bool(done or free or self._full)

    @property
    def _full(self) -> bool:
        """All is answered, much of it not durable: a cut would make room."""
        answered = self._answered == self.last and not self._flying
        much = self._wanted or 2 * self._bytes > self._most_bytes
        return self._keeps and answered and bool(self._bytes) and much

    def _show_up(self) -> None:
        """Open the session again at a shard that was started anew; one that is away may be."""
        seen = self._link.openings
        request = wire.LookRequest(what="session", session=self._link.identity.session)
        try:
            future = self._link.start("Look", request.SerializeToString(), self._quiet_seconds)
            self._link.finish("Look", future)
        except ReopenError:
            if seen:  # not the first opening, which is the client's
                self._link.open(seen)
        except PASSING:
            return

    def _send(self) -> None:
        while True:
            with self._changed:
                if self._next >= len(self._entries) or len(self._flying) >= _IN_FLIGHT:
                    return
                entry = self._entries[self._next]
                self._next += 1
                turn, seen = self._turn, self._link.openings
            future = self._link.start(entry.method, entry.data)
            future.add_done_callback(self._wake)
            with self._changed:
                current = turn == self._turn
                if current:
                    self._flying.append(_Flight(entry, future, turn, seen))
            if not current:
                future.cancel()

    def _wake(self, future: Any) -> None:
        with self._changed:
            self._changed.notify_all()

    def _receive(self) -> None:
        with self._changed:
            if not self._flying or not self._flying[0].future.done():
                return
            one = self._flying.popleft()
        try:
            reply = self._link.finish(one.entry.method, one.future).message
        except TerraceError as error:
            self._repeat(one, error)
        else:
            self._note(one, reply)

    def _repeat(self, one: _Flight, error: TerraceError) -> None:
        """Begin again with the first that is not answered. Raises: what cannot pass."""
        if one.turn != self._turn:
            return
        if not isinstance(error, PASSING):
            raise error
        if isinstance(error, ReopenError):
            self._link.open(one.seen)
        else:
            self._patience = self._patience or self._link.patience()
            self._patience.bear(error)
        self._start_over(one.turn)

    def _cut(self, life: int) -> None:
        request = wire.CutRequest(session=self._link.identity.session)
        reply = self._link.call("Cut", request.SerializeToString(), attempt_seconds=_CUT_SECONDS)
        with self._changed:
            if life == self._life:
                self._settle(reply.message)

    # -- what a reply says ----------------------------------------------------------------------

    def _note(self, one: _Flight, reply: Any) -> None:
        with self._changed:
            if one.turn != self._turn:
                return  # it was sent again: perhaps to a shard that has lost what this one says
            self._patience = None
            self._answered = max(self._answered, one.entry.sequence)
            if one.entry.sequence > self._counted:
                self._counted = one.entry.sequence
                self.skipped += reply.skipped
            self._settle(reply)

    def _settle(self, reply: Any) -> None:
        """Drop what needs no repeating any more."""
        self._durable = max(self._durable, reply.durable)
        self.wants_checkpoint = reply.wants_checkpoint
        self._drop(min(self._durable, self._answered) if self._keeps else self._answered)
        self._changed.notify_all()

    def _drop(self, sequence: int) -> None:
        """Forget entries up to and including this sequence."""
        while self._entries and self._entries[0].sequence <= sequence:
            self._bytes -= len(self._entries.popleft().data)
            self._next = max(0, self._next - 1)

    def _start_over(self, turn: int | None = None) -> None:
        """Another turn, if ``turn`` is not over already: send again what is not answered."""
        with self._changed:
            if turn not in (None, self._turn):
                return
            given_up, self._flying = list(self._flying), deque()
            self._turn += 1
            self._next = sum(entry.sequence <= self._answered for entry in self._entries)
            self._changed.notify_all()
        for flight in given_up:
            flight.future.cancel()

    def _reopened(self, reply: Any) -> None:
        """The session was opened, perhaps at a shard that has lost what it had answered."""
        with self._changed:
            self._keeps = reply.keeps
            first = self._entries[0].sequence if self._entries else self.last + 1
            if reply.applied < first - 1:
                raise LostError(
                    f"{self._link.name}: expected {first - 1} changes of this worker, found "
                    f"{reply.applied}: it lost some in a crash; go back to a checkpoint, in every "
                    f"worker (store.resume(), terrace train --resume)"
                )
            self._answered = min(reply.applied, self.last)
            self._drop(min(self._durable, self._answered) if self._keeps else self._answered)
        self._start_over()

    # -- waiting --------------------------------------------------------------------------------

    def _make_room(self, size: int) -> None:
        if self._bytes and self._bytes + size > self._most_bytes:
            self._wanted = True
            self._changed.notify_all()
            try:
                self._wait(
                    lambda: not self._bytes or self._bytes + size <= self._most_bytes, "room"
                )
            finally:
                self._wanted = False

    def _ensure_sound(self) -> None:
        if self._failure is not None:
            # Without the frames of earlier calls, which would be kept alive with all they hold.
            raise self._failure.with_traceback(None)

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        """Wait on the condition; the deadline is for no progress at all."""
        seen, deadline = (0, 0), 0.0
        while not ready():
            self._ensure_sound()
            if seen != (self._answered, self._durable) or not deadline:
                seen = (self._answered, self._durable)
                deadline = time.monotonic() + self._link.timeout_seconds
            left = deadline - time.monotonic()
            if left <= 0:
                raise UnavailableError(
                    f"{self._link.name}: waited {self._link.timeout_seconds:.0f} s for {what}"
                )
            self._changed.wait(left)
        self._ensure_sound()
