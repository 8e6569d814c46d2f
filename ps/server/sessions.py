"""Sessions: who may change rows of a shard, and how far each of them has come.

A client is a worker by name; its *incarnation* is one process of it, a higher one shuts out all
lower ones, for good. Its changes carry *sequences* from 1 without a gap, so each is applied once
and in order however often it arrives. What is applied is saved with every cut, in its transaction;
who was let in and who was shut out (*fences*) at once, and no crash or roll-back undoes that.

After a restart of the shard a session has to be opened again; the client says how far it had come,
and repeats what is lacking. Until all have, or were fenced by a deadline (which begins anew when
one of them comes back), rows are not what they were, and reading them waits (`wait_recovered`).

The *clock* of a client is its number of steps whose changes are applied here. A reader waits until
the slowest client of its job has come far enough (`wait_clock`), which bounds staleness.

Threads: any; one condition guards all. Every wait has a deadline.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping

from ps.server.session import FENCE, Session, check_name, describe, fenced_out, read_sessions
from ps.wire.status import ReopenError
from storage.errors import (
    CorruptError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)

MOST_CLIENTS = 4096
"""Known at once; bounds what a flood of names can take."""

_RESULTS = 64


class Sessions:
    """See the module's docstring. saved: what `save` gave with the last cut, None for no cut.

    replays: clients keep what is not durable and repeat it. replay_seconds: how long they have for
    that. most_waiting: requests that wait for others at once.

    Raises: CorruptError when ``saved`` cannot be read.
    """

    def __init__(
        self,
        saved: bytes | None = None,
        fences: bytes | None = None,
        *,
        replays: bool = True,
        replay_seconds: float = 120.0,
        most_waiting: int = 64,
    ) -> None:
        self._condition = threading.Condition()
        self._clients: dict[str, Session] = {}
        self._replays = replays
        self._replay_seconds = replay_seconds
        self._recover_by = time.monotonic() + replay_seconds
        self._draining = False
        self._waiting, self._most_waiting = 0, most_waiting
        for entry in read_sessions(saved):
            session = Session(**entry, durable=entry["applied"])
            self._clients[session.client] = session
        # Incarnations that were shut out after that cut: the redo log may have changes of theirs.
        self._older: dict[tuple[str, int], Session] = {}
        for entry in read_sessions(fences, FENCE):
            known = self._clients.get(entry["client"])
            if known is None or known.incarnation < entry["incarnation"]:
                if known is not None:
                    self._older[known.client, known.incarnation] = known
                self._clients[entry["client"]] = Session(**entry)
            elif known.incarnation == entry["incarnation"]:
                known.fenced |= entry["fenced"]

    # -- who is in ------------------------------------------------------------------------------

    def known(self, client: str) -> int:
        """The highest incarnation known of a client, 0 for none. Raises: RefusedError."""
        check_name(client)
        with self._condition:
            session = self._clients.get(client)
            return session.incarnation if session else 0

    def open(
        self, client: str, incarnation: int, token: int, *, rank: int, world: int, awaited: int
    ) -> Session:
        """Let a process in, or in again: its session. Raises: FencedError; RefusedError."""
        check_name(client)
        if not 0 <= rank < world <= MOST_CLIENTS:
            raise RefusedError(f"open: expected a rank from 0 to world - 1, got {rank} of {world}")
        with self._condition:
            session = self._clients.get(client)
            if session is None or incarnation > session.incarnation:
                session = self._enter(client, incarnation, token)
            elif incarnation < session.incarnation or token != session.token or session.fenced:
                raise fenced_out(session, incarnation)
            elif self._replays and not session.opened:
                # Later on nothing is lost: what is not applied is under way.
                session.awaited = awaited
                if session.applied < awaited:
                    self._recover_by = time.monotonic() + self._replay_seconds
            session.rank, session.world = rank, world
            session.opened, session.closed = True, False
            # Of a job that has become smaller nobody waits for those that are no more.
            for other in self._clients.values():
                if other.job == session.job and other.rank >= world:
                    other.closed = True
            self._condition.notify_all()
            return session

    def get(self, client: str, incarnation: int) -> Session:
        """The session of a request. Raises: FencedError; ReopenError; RefusedError."""
        with self._condition:
            session = self._clients.get(client)
            if session is None or incarnation > session.incarnation:
                check_name(client)
                raise ReopenError(f"client {client!r} has no open session {incarnation} here")
            if incarnation < session.incarnation or session.fenced:
                raise fenced_out(session, incarnation)
            if not session.opened:
                raise ReopenError(f"client {client!r} has not been here since the shard started")
            return session

    def close(self, session: Session) -> None:
        """The client has ended."""
        with self._condition:
            session.closed = True
            self._condition.notify_all()

    # -- changes --------------------------------------------------------------------------------

    def wait_turn(self, session: Session, sequence: int, deadline: float) -> bool:
        """Wait until all before ``sequence`` is applied: True; False if itself is, already.

        Raises: UnavailableError after the deadline; FencedError.
        """
        with self._condition:
            self._wait(
                lambda: session.applied >= sequence - 1 or self._is_out(session),
                deadline,
                lambda: f"change {sequence} of {session.client} came, but not {sequence - 1}",
            )
            self._ensure_in(session)
            return session.applied < sequence

    def has_turn(self, session: Session, sequence: int) -> bool:
        """Whether ``sequence`` is the next; for the owner, before it applies. Raises: FencedError;
        RefusedError for one that is not next and not applied.
        """
        with self._condition:
            self._ensure_in(session)
            if sequence > session.applied + 1:
                raise RefusedError(
                    f"change {sequence} of {session.client}: expected {session.applied + 1}"
                )
            return session.applied < sequence

    def applied(self, session: Session, sequence: int, *, clock: int = 0, skipped: int = 0) -> None:
        """A change is applied. clock: steps that its client has made with it, 0 for no news."""
        with self._condition:
            session.applied = sequence
            session.clock = max(session.clock, clock)
            if skipped:
                session.skipped[sequence] = skipped
                for old in [s for s in session.skipped if s <= sequence - _RESULTS]:
                    del session.skipped[old]
            self._condition.notify_all()

    # -- clocks ---------------------------------------------------------------------------------

    def least_clock(self, session: Session) -> int:
        """The least clock of all workers of a session's job."""
        with self._condition:
            return min(self._clocks(session).values(), default=session.clock)

    def wait_clock(self, session: Session, least: int, deadline: float) -> int:
        """Wait until every worker of the job has made ``least`` steps: the least clock then.

        Raises: UnavailableError after the deadline, naming who is behind; FencedError.
        """
        with self._condition:
            self._wait(
                lambda: (
                    min(self._clocks(session).values(), default=least) >= least
                    or self._is_out(session)
                ),
                deadline,
                lambda: f"waited for step {least} of " + self._behind(session, least),
            )
            self._ensure_in(session)
            return min(self._clocks(session).values(), default=session.clock)

    @property
    def waiting(self) -> int:
        """Requests that wait for other clients, or other requests."""
        return self._waiting

    def reset_clocks(self) -> None:
        """The tables went back to a checkpoint: steps are counted anew."""
        with self._condition:
            for session in self._clients.values():
                session.clock = 0

    # -- after a restart ------------------------------------------------------------------------

    @property
    def recovering(self) -> list[str]:
        """Clients that have not repeated what is lacking."""
        with self._condition:
            return self._lacking()

    @property
    def open_count(self) -> int:
        """Sessions that are open now."""
        with self._condition:
            return sum(s.opened and not s.closed for s in self._clients.values())

    def wait_recovered(self, deadline: float) -> bool:
        """Wait until no client lacks a repeated change; those that come too late are fenced.

        True when some were: the fences have to be saved. Raises: UnavailableError after the
        deadline.
        """
        with self._condition:
            while lacking := self._lacking():
                left = self._recover_by - time.monotonic()
                if left <= 0:
                    self._fence(lacking)
                    return True
                self._wait(
                    lambda: not self._lacking(),
                    min(deadline, self._recover_by),
                    lambda: f"waited for {', '.join(self._lacking())} to repeat changes",
                    quiet=deadline > self._recover_by,
                )
            return False

    def drain(self) -> None:
        """End all waits, now and later: UnavailableError."""
        with self._condition:
            self._draining = True
            self._condition.notify_all()

    def replay(self, client: str, incarnation: int, sequence: int, clock: int) -> bool:
        """Note that a change from the redo log is applied: False, nothing, if it was already.

        For the time before anybody is let in. Raises: CorruptError for one that is not the next.
        """
        with self._condition:
            session = self._clients.get(client)
            if session is None or session.incarnation != incarnation:
                key = (client, incarnation)
                session = self._older.setdefault(key, Session(client, incarnation, 0))
            if sequence > session.applied + 1:
                raise CorruptError(
                    f"redo log: expected change {session.applied + 1} of {client}, found "
                    f"{sequence}; restore a backup"
                )
            if sequence <= session.applied:
                return False
            session.applied, session.clock = sequence, max(session.clock, clock)
            return True

    # -- durability -----------------------------------------------------------------------------

    def save(self) -> tuple[bytes, dict[tuple[str, int], int]]:
        """What to put into a cut; and what to tell `saved` when it is made. Between changes."""
        with self._condition:
            kept = [describe(session) for session in self._clients.values()]
            marks = {(s.client, s.incarnation): s.applied for s in self._clients.values()}
            return json.dumps(kept).encode(), marks

    def synced(self, session: Session, sequence: int) -> None:
        """A change is in the synced redo log."""
        with self._condition:
            session.durable = max(session.durable, sequence)

    def fences(self) -> bytes:
        """Who may come and who may not, to be saved at once."""
        with self._condition:
            sessions = self._clients.values()
            return json.dumps([describe(session, FENCE) for session in sessions]).encode()

    def saved(self, marks: Mapping[tuple[str, int], int]) -> None:
        """A cut with what `save` gave is durable."""
        with self._condition:
            for (client, incarnation), applied in marks.items():
                session = self._clients[client]
                if session.incarnation == incarnation:
                    session.durable = max(session.durable, applied)

    # -- private: with the condition held -------------------------------------------------------

    def _enter(self, client: str, incarnation: int, token: int) -> Session:
        if client not in self._clients and len(self._clients) >= MOST_CLIENTS:
            raise RefusedError(f"open: {MOST_CLIENTS} clients are known already; expected fewer")
        before = self._clients.get(client)
        if before is not None:
            before.fenced = True
        self._clients[client] = Session(client, incarnation, token)
        return self._clients[client]

    def _clocks(self, session: Session) -> dict[str, int]:
        """The clocks to wait for; of a worker that has not come yet, 0."""
        job = session.job
        mates = [s for s in self._clients.values() if s.job == job]
        clocks = {s.client: s.clock for s in mates if not s.closed}
        here = {s.rank for s in mates}
        return clocks | {
            f"worker {rank} (not connected yet)": 0
            for rank in range(session.world)
            if rank not in here
        }

    def _behind(self, session: Session, least: int) -> str:
        behind = [f"{n} at {c}" for n, c in self._clocks(session).items() if c < least]
        return ", ".join(behind[:4]) + (f" and {len(behind) - 4} more" if len(behind) > 4 else "")

    def _lacking(self) -> list[str]:
        if not self._replays:
            return []
        return [
            s.client
            for s in self._clients.values()
            if not (s.closed or s.fenced) and (not s.opened or s.applied < s.awaited)
        ]

    def _fence(self, clients: list[str]) -> None:
        for client in clients:
            self._clients[client].fenced = True
        self._condition.notify_all()

    def _is_out(self, session: Session) -> bool:
        return session.fenced or self._clients.get(session.client) is not session

    def _ensure_in(self, session: Session) -> None:
        if self._is_out(session):
            raise fenced_out(self._clients[session.client], session.incarnation)

    def _wait(
        self,
        ready: Callable[[], bool],
        deadline: float,
        what: Callable[[], str],
        *,
        quiet: bool = False,
    ) -> None:
        if ready():
            return
        if self._waiting >= self._most_waiting:
            # Or there would be no thread left for those that are waited for.
            raise OverloadedError(
                f"{self._waiting} requests wait for others, expected fewer than "
                f"{self._most_waiting}; try again shortly"
            )
        self._waiting += 1
        try:
            self._condition.wait_for(
                lambda: ready() or self._draining, max(0.0, deadline - time.monotonic())
            )
        finally:
            self._waiting -= 1
        if self._draining and not ready():
            raise UnavailableError("the shard is being stopped")
        if not quiet and not ready():
            raise UnavailableError(what())
