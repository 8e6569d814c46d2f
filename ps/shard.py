"""Shard: one server's part of the tables: RAM over SSD, changed by one thread, exactly once.

Requests come in many threads. They wait for what has to be before them (`Sessions`), then hand
their work to the owner, the one thread that touches rows. A change is applied and noted as applied
between the same two cuts, so that a crash keeps or loses both.

What a reply promises, by durability:

* ``strict``: the change is in the synced redo log (or a cut); nothing that was answered is lost.
* ``interval``: a cut comes within so many seconds; clients keep what no cut has, and repeat it.
* ``checkpoint``: cuts are made at checkpoints only; after a crash all go back to one.

After a crash the last cut is shown, and in ``strict`` the redo log is applied on top. Pulls wait
until every client has repeated what it kept.

Threads: any, but for `apply` and its like, which are the owner's. Every wait has a deadline.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ps.checkpoint import FENCES_FACT, KEPT, REDO_FACT, SESSIONS_FACT
from ps.directory import check_same, is_store
from ps.partition import Partition
from ps.server.answer import Answer, Room, gather, hand_out
from ps.server.change import Change, Owned
from ps.server.meeting import Meetings
from ps.server.milestones import Milestones
from ps.server.opening import open_shard
from ps.server.owner import Owner
from ps.server.place import Place
from ps.server.redo import Redo
from ps.server.session import Session
from ps.server.sessions import Sessions
from ps.settings import Settings
from ps.store import Store
from ps.table import Table
from storage.errors import (
    DiskFullError,
    RefusedError,
    StoreError,
)
from storage.rows import Keys

_OPEN_SECONDS = 600.0
T = TypeVar("T")


class Shard:
    """See the module's docstring. path: of the store's folder. settings: of the store; the shard
    makes cuts for "strict" as for "interval". replay_seconds: what clients have to repeat changes
    after a restart. queue_bytes: what may wait for the owner.

    boot: a number drawn at the start, by which clients notice a restart.

    Raises: as `ps.open`.
    """

    def __init__(
        self,
        path: Path,
        place: Place,
        settings: Settings,
        *,
        replay_seconds: float = 120.0,
        queue_bytes: int = 64 << 20,
    ) -> None:
        self.place = place
        self.partition = Partition(place.shards)
        self.boot = secrets.randbits(63) | 1
        self.meetings = Meetings()
        self.owner = Owner(most_bytes=queue_bytes)
        self.keeps = settings.durability != "checkpoint"
        self.sessions = Sessions(replays=self.keeps, replay_seconds=replay_seconds)
        self.pulled_keys = self.pulled_hits = 0
        self._fences_due = False
        self._failure: BaseException | None = None
        self._path, self._strict = path, settings.durability == "strict"
        self._settings = replace(settings, durability="interval") if self._strict else settings
        self._replay_seconds = replay_seconds
        self._opening = threading.Lock()
        self._redo: Redo | None = None
        self._store: Store | None = None
        self.milestones = Milestones(lambda: self.store, lambda: self.sessions, self._own)
        try:
            if is_store(path):
                self._load(None)
        except BaseException:
            self.owner.close(drain=False)
            raise

    @property
    def store(self) -> Store:
        """The tables. Raises: RefusedError before a client has said what they are."""
        if self._store is None:
            raise RefusedError("the shard has no tables yet; open a session that names them")
        return self._store

    @property
    def owned(self) -> Owned:
        """What requests are checked against."""
        return Owned(self.store.tables, self.partition, self.place.shard)

    # -- sessions -------------------------------------------------------------------------------

    def open(
        self,
        client: str,
        incarnation: int,
        token: int,
        *,
        rank: int,
        world: int,
        awaited: int,
        tables: Sequence[Table],
    ) -> Session:
        """Let a worker in: its session. The first one says which tables there are.

        Raises: FencedError; MismatchError where its tables are others; RefusedError.
        """
        self.sessions.known(client)  # a name that cannot be makes no tables
        self.ensure_tables(tables)
        known = self.sessions.known(client)
        session = self.sessions.open(
            client, incarnation, token, rank=rank, world=world, awaited=awaited
        )
        if incarnation > known:
            self.meetings.forget(session.job)
            self._fences_due = True
        # Also for one that asks again: its first call may not have saved them, or not yet.
        self._save_fences()
        return session

    @property
    def loaded(self) -> bool:
        """Whether there are tables."""
        return self._store is not None

    def ensure_tables(self, tables: Sequence[Table]) -> None:
        """Make the store with these tables where there is none. Raises: MismatchError."""
        with self._opening:
            if self._store is None:
                self._load(tables)
            check_same(self._path, list(self.store.tables.values()), tables)

    def _wait_recovered(self, deadline: float) -> None:
        if self.sessions.wait_recovered(deadline):
            self._fences_due = True
        if self._fences_due:
            self._save_fences()

    def _save_fences(self) -> None:
        """Make durable who may come and who may not, where it is not: what follows is behind it."""
        store = self.store

        def save() -> None:
            if self._fences_due:
                self._fences_due = False
                try:
                    store.commit({FENCES_FACT: self.sessions.fences()})
                except BaseException:
                    self._fences_due = True
                    raise

        self._own(save)

    # -- rows -----------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Calls that wait for what other clients do."""
        return self.sessions.waiting + self.meetings.waiting

    def pull(
        self,
        session: Session,
        table: str,
        keys: Keys,
        *,
        least: int,
        whole: bool,
        deadline: float,
        room: Room | None = None,
    ) -> Answer:
        """Rows with all changes of the first ``least`` steps of every worker.

        keys: (U,) uint64, unique, of this shard. room: from the clock of the answer, where
        embeddings are to be written, (U, D) float32; None for an array of their own. Raises:
        UnavailableError, naming who is behind.
        """
        self._wait_recovered(deadline)
        self.sessions.wait_clock(session, least, deadline)
        size = keys.nbytes + 4 * len(keys) * self.store.tables[table].width

        def read() -> Answer:
            clock = self.sessions.least_clock(session)
            if whole:
                return hand_out(self.store, table, keys, clock)
            answer = gather(self.store, table, keys, clock, room)
            self.pulled_keys += len(keys)
            self.pulled_hits += answer.hits
            return answer

        return self.owner.run(read, size=size, deadline=deadline)

    def peek(self, table: str, keys: Keys, *, deadline: float) -> Answer:
        """Embeddings as they are now; nothing is inserted, counted or moved."""
        self._wait_recovered(deadline)
        store = self.store
        size = 4 * len(keys) * store.tables[table].width
        values = self.owner.run(lambda: store.peek(table, keys), size=size, deadline=deadline)
        return Answer(0, np.ascontiguousarray(values))

    def change(
        self,
        session: Session,
        sequence: int,
        change: Change,
        record: Sequence[bytes],
        *,
        deadline: float,
    ) -> int:
        """Apply a change once, after all before it: rows that were left out.

        record: of it, for the redo log. Raises: UnavailableError when one before it does not come;
        DiskFullError, before anything has changed; FencedError.
        """
        if sequence < 1:
            raise RefusedError(f"sequence: expected 1 or more, got {sequence}")
        if self.sessions.wait_turn(session, sequence, deadline):
            self.owner.run(
                lambda: self._apply_once(session, sequence, change, record),
                size=sum(map(len, record)),
                deadline=deadline,
            )
        if self._redo is not None:
            # Also for one that is repeated: its first answer may not have been synced.
            self._logged(lambda redo: redo.sync(redo.end))
            self.sessions.synced(session, sequence)
        return session.skipped.get(sequence, 0)

    def cut(self, session: Session, *, closing: bool) -> None:
        """Make all up to now durable. closing: the client ends."""
        if closing:
            self.sessions.close(session)
        self._own(self.store.cut)

    # -- figures and the end --------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counters, bytes, sessions and the queue, as JSON values."""
        store = self.store
        return {
            "shard": self.place.shard,
            "shards": self.place.shards,
            "pulled": {"keys": self.pulled_keys, "hits": self.pulled_hits},
            "sessions": self.sessions.open_count,
            "recovering": self.sessions.recovering,
            "wants_checkpoint": store.wants_checkpoint,
            **store.stats(),
        }

    def figures(self) -> dict[str, Any]:
        """What `ps.server.metrics.Metrics` shows; little before there are tables."""
        queue = {"items": self.owner.queued, "bytes": self.owner.queued_bytes}
        found: dict[str, Any] = {"queue": queue, "sessions": self.sessions.open_count}
        found["recovering"] = int(bool(self.sessions.recovering))
        if self._store is not None:
            found |= self._store.stats()
            free = shutil.disk_usage(self._path).free
            found["disk_bytes"] = {**found["disk_bytes"], "free": free}
            found["checkpoint_age_seconds"] = self.milestones.age_seconds
        return found

    @property
    def failure(self) -> BaseException | None:
        """What stopped the shard for good, None while all is well."""
        stopped = None if self._store is None else self._store.planner.failure
        return stopped or self._failure

    def digest(self) -> int:
        """See `Store.digest`; of the rows of this shard."""
        return self._own(self.store.digest)

    def check(self) -> list[str]:
        """See `Store.check`."""
        return self._own(self.store.check)

    def drain(self) -> None:
        """End all waits for others: what is under way finishes, nothing waits any more."""
        self.sessions.drain()
        self.meetings.drain()

    def close(self) -> None:
        """Finish what is queued, make a cut, let go of everything. Twice is fine."""
        self.drain()
        self.owner.close()
        whole = False
        try:
            if self._store is not None:
                whole = self._store.planner.failure is None  # or closing makes no cut
                self._store.close()
        except BaseException:
            whole = False
            raise
        finally:
            if self._redo is not None and whole:
                self._redo.discard()  # the last cut has all
            elif self._redo is not None:
                self._redo.close()

    # -- notes of a cut -------------------------------------------------------------------------

    def facts(self) -> tuple[Mapping[str, bytes], Callable[[], None]]:
        """How far everybody has come, and what the redo log holds beyond that. Between steps."""
        saved, marks = self.sessions.save()
        facts = {SESSIONS_FACT: saved}
        generation = 0
        if self._redo is not None:
            generation = self._redo.rotate()
            facts[REDO_FACT] = str(generation).encode()

        def kept() -> None:
            self.sessions.saved(marks)
            if self._redo is not None:
                self._redo.drop(generation)

        return facts, kept

    # -- the owner's ----------------------------------------------------------------------------

    def _apply_once(
        self, session: Session, sequence: int, change: Change, record: Sequence[bytes]
    ) -> None:
        if not self.sessions.has_turn(session, sequence):
            return
        store = self.store
        logged = 0 if self._redo is None else sum(map(len, record))
        with store.stepping(), change.prepared(store, logged):
            # Again, now that no cut comes in between: one that knows of a newer process and not of
            # this one's last change must not be followed by that change in the redo log.
            self.sessions.has_turn(session, sequence)
            if self._redo is not None:
                self._logged(lambda redo: redo.append(record))
            with store.planner.changing():
                skipped = change.apply(store)
            self.sessions.applied(session, sequence, clock=change.clock, skipped=skipped)

    def _logged(self, work: Callable[[Redo], Any]) -> None:
        """Do this with the redo log; an error that it does not survive is the shard's."""
        assert self._redo is not None
        try:
            work(self._redo)
        except DiskFullError:
            raise
        except StoreError as error:
            self._failure = error
            raise

    def _own(self, work: Callable[[], T]) -> T:
        return self.owner.run(work, size=0, deadline=time.monotonic() + _OPEN_SECONDS)

    def _load(self, tables: Sequence[Table] | None) -> None:
        """Open the store, or make it, as it was when the last change was answered."""
        found = open_shard(
            self._path, tables, self._settings, self.place,
            strict=self._strict, replays=self.keeps, replay_seconds=self._replay_seconds,
        )  # fmt: skip
        self._store, self.sessions, self._redo = found.store, found.sessions, found.redo
        try:
            found.store.note(self)
            if self.place.shard:
                # The newest one may be prepared, and no marker name it.
                found.store.never_fewer_checkpoints(KEPT)
            if self._redo is not None:
                found.store.cut()  # all that was replayed is in it
                if not self._strict:
                    self._redo.discard()
                    self._redo = None
        except BaseException:
            self._store = self._redo = None
            found.abandon()
            raise
