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

import json
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ps.checkpoint import FENCES_FACT, KEPT, PLACE_FACT, REDO_FACT, SESSIONS_FACT
from ps.directory import check_same, is_store
from ps.partition import Partition
from ps.server.change import Change, Owned, read_record, resident
from ps.server.meeting import Meetings
from ps.server.owner import Owner
from ps.server.parcel import Parcel
from ps.server.redo import Redo
from ps.server.session import Session
from ps.server.sessions import Sessions
from ps.settings import Settings
from ps.state import pack_state, unpack_state
from ps.store import Store
from ps.table import Table
from storage.array import FloatArray
from storage.errors import (
    ConfigError,
    CorruptError,
    DiskFullError,
    MismatchError,
    RefusedError,
    StoreError,
)
from storage.rows import Floats, Keys

_OPEN_SECONDS = 600.0
T = TypeVar("T")
Room = Callable[[int], Floats]
_MOST_STEP = 2**63


@dataclass(frozen=True)
class Place:
    """Which shard this is. shard: from 0. shards: how many there are."""

    shard: int
    shards: int

    def __post_init__(self) -> None:
        Partition(self.shards)
        if not 0 <= self.shard < self.shards:
            raise ConfigError(f"--shard: expected I/N with I from 0 to N - 1, got {self.shard}")


@dataclass(frozen=True)
class Answer:
    """Rows that were pulled. values: (U, width) float32. clock: see `Sessions`. steps: (U,) uint32
    and missing: (U,) bool of whole rows, else None.
    """

    clock: int
    values: Floats
    steps: Any = None
    missing: Any = None


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
        self._checkpointed: float | None = None
        self._fences_due = False
        self._failure: BaseException | None = None
        self._path, self._strict = path, settings.durability == "strict"
        self._settings = replace(settings, durability="interval") if self._strict else settings
        self._replay_seconds = replay_seconds
        self._opening = threading.Lock()
        self._redo: Redo | None = None
        self._store: Store | None = None
        self._state: dict[int, tuple[str, bytes]] = {}
        self._parcel = Parcel()
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
            if whole:
                return self._hand_out(session, table, keys)
            return self._gather(session, table, keys, room)

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

    # -- checkpoints ----------------------------------------------------------------------------

    def take_state(
        self, session: Session, step: int, *, offset: int, size: int, piece: bytes
    ) -> None:
        """A piece of the tensors of a checkpoint's state. Raises: RefusedError out of order."""
        _check_step(step)
        key = (session.client, session.incarnation, step)
        if offset and step in self.store.checkpoints[-1:] and not self._parcel.is_of(key):
            return  # the last piece again: the checkpoint is made
        self._parcel.take(key, offset, size, piece)

    def prepare(
        self, session: Session, step: int, *, tree: str, size: int, marker: bool, committed: int
    ) -> None:
        """Make a checkpoint. marker: it counts from now on; else once shard 0 has one of its step.

        committed: the newest step that counts, -1 for none; what was prepared after it and never
        counted is discarded. Done already, it is not done again, unless it counted before.
        """
        _check_step(step)
        store = self.store
        key = (session.client, session.incarnation, step)

        def make() -> None:
            if step in store.checkpoints[-1:] and step != committed:
                self._parcel.clear()
                return
            state = _unpack(tree, self._parcel.whole(key, size)) if tree else {}
            if not marker:
                store.discard_checkpoints(committed)
            store.checkpoint(step, state, keep=KEPT if marker else KEPT + 1)
            self._checkpointed = time.monotonic()
            # Not before: the last piece may come again while this is done.
            self._parcel.clear()
            self._state = {}

        self._own(make)

    def commit(self, step: int) -> None:
        """The marker of this step is made: of three checkpoints the oldest may go."""
        store = self.store
        self._ensure_checkpoint(step)
        self._own(lambda: store.keep_checkpoints(KEPT))

    def rewind(self, step: int) -> None:
        """Go back to the checkpoint of this step; who may come and who may not stays as it is."""
        store = self.store

        def back() -> None:
            self._ensure_checkpoint(step)
            # First, so that the cut which makes the checkpoint the last one has them so.
            self.sessions.reset_clocks()
            store.resume(step)

        self._own(back)

    def state(self, step: int) -> tuple[str, bytes]:
        """The caller's state of a checkpoint: JSON and tensors, as `ps.state.pack_state` gives."""
        self._ensure_checkpoint(step)
        found = self._state.get(step)
        if found is None:
            found = pack_state(self._own(lambda: self.store.state_of(step)))
            self._state = {step: found}
        return found

    def _ensure_checkpoint(self, step: int) -> None:
        if step not in (kept := self.store.checkpoints):
            raise RefusedError(f"expected the step of a checkpoint, one of {kept}, got step {step}")

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
            if self._checkpointed is not None:
                found["checkpoint_age_seconds"] = time.monotonic() - self._checkpointed
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
        change.prepare(store)
        with store.stepping():
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

    def _gather(self, session: Session, table: str, keys: Keys, room: Room | None) -> Answer:
        store = self.store
        stack = store.stacks[table]
        array, seen = stack.top.array, stack.top.stats
        assert isinstance(array, FloatArray)
        clock, before = self.sessions.least_clock(session), seen.key_hits
        shape = (len(keys), stack.table.dim)
        values = np.empty(shape, np.float32) if room is None else room(clock)
        with closing(resident(store, table, keys)) as pieces:
            for piece, positions in pieces:
                array.embeddings_at(positions, values[piece])
        self.pulled_keys += len(keys)
        self.pulled_hits += seen.key_hits - before
        return Answer(clock, values)

    def _hand_out(self, session: Session, table: str, keys: Keys) -> Answer:
        rows, missing = self.store.hand_out(table, keys)
        return Answer(self.sessions.least_clock(session), rows.values, rows.steps, missing)

    def _own(self, work: Callable[[], T]) -> T:
        return self.owner.run(work, size=0, deadline=time.monotonic() + _OPEN_SECONDS)

    def _load(self, tables: Sequence[Table] | None) -> None:
        """Open the store, or make it; show the last cut and what the redo log has beyond it."""
        store = Store(self._path, tables, self._settings)
        try:
            self._ensure_place(store)
            self.sessions = Sessions(
                store.fact(SESSIONS_FACT), store.fact(FENCES_FACT),
                replays=self.keeps, replay_seconds=self._replay_seconds,
            )  # fmt: skip
            if self._strict or Redo.found(self._path):
                self._redo = Redo(self._path, first=int(store.fact(REDO_FACT) or 0))
            self._store = store
            if self._redo is not None:
                self._replay(store, self._redo)
            store.note(self)
            if self.place.shard:
                # The newest one may be prepared, and no marker name it.
                store.never_fewer_checkpoints(KEPT)
            if self._redo is not None:
                store.cut()  # all that was replayed is in it
                if not self._strict:
                    self._redo.discard()
                    self._redo = None
        except BaseException:
            self._store = None
            if self._redo is not None:
                self._redo.close()
                self._redo = None
            store.abandon()
            raise

    def _replay(self, store: Store, redo: Redo) -> None:
        """Apply what the last cut lacks, in the order in which it was applied before."""
        for record in redo.replay():
            frame, change = read_record(record, self.owned)
            told = frame.message.session
            sequence = frame.message.sequence
            if self.sessions.replay(told.client, told.incarnation, sequence, change.clock):
                with store.stepping():
                    change.apply(store)

    def _ensure_place(self, store: Store) -> None:
        """A folder belongs to one shard of so many. Raises: MismatchError."""
        mine = json.dumps({"shard": self.place.shard, "shards": self.place.shards})
        found = store.fact(PLACE_FACT)
        if found is None:
            store.commit({PLACE_FACT: mine.encode()})
        elif json.loads(found) != json.loads(mine):
            was = json.loads(found)
            raise MismatchError(
                f"{self._path}: this folder has shard {was['shard']}/{was['shards']}, expected "
                f"{self.place.shard}/{self.place.shards}; give it the folder of its own"
            )


def _check_step(step: int) -> None:
    if step >= _MOST_STEP:
        raise RefusedError(f"step: expected one below 2**63, got {step}")


def _unpack(tree: str, tensors: bytes) -> dict[str, Any]:
    """The state that a client packed. Raises: RefusedError."""
    try:
        return unpack_state(tree, tensors)
    except CorruptError as error:
        raise RefusedError(f"prepare: {error}") from error
