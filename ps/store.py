"""Store: tables whose rows live on several tiers of one process, over one directory.

The store decides in batch order what is resident (`stage`), reads and writes rows, and makes what
it holds durable (`checkpoint`). The modules that compute with rows are in worker/.

A *cut* is one synced transaction that says which blocks count. A checkpoint is a cut with the step
and the caller's state; the last two are kept. Opening shows the last cut, `close` makes one, only
`resume` goes back to a checkpoint. `ps.upkeep` makes the others.

Threads: one lock, the planner's, guards all tiers; every method takes it. `stage` is called by one
thread at a time (the prefetch thread, or the caller's own). What goes on beside
is in `ps.upkeep`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ps.checkpoint import COUNTS, KEPT, Checkpoints, Cut
from ps.coming import Coming
from ps.digest import rows_digest
from ps.directory import StoreDirectory
from ps.doorkeeper import Doorkeeper, doorkeepers
from ps.ghost import Ghost
from ps.pool import Pool
from ps.record import Record, apply
from ps.settings import Settings
from ps.stack import Stack, make_stacks, sizes
from ps.survey import Survey, idle
from ps.table import Table
from ps.tables import Tables
from ps.upkeep import Notes, Upkeep
from ps.workingset import Asked, Part, WorkingSet
from storage.errors import ConfigError, StoreError
from storage.log import BlockLog
from storage.rows import Floats, Keys, Mask, Rows
from storage.ssd import SsdTier


class Store(Tables):
    """See the module's docstring; made by `ps.open`."""

    coming: Coming
    stacks: dict[str, Stack]

    def __init__(
        self, path: str | Path, tables: Sequence[Table] | None, settings: Settings
    ) -> None:
        self._policy = settings.policy
        with ExitStack() as undo:
            directory = StoreDirectory(path, tables)
            undo.callback(directory.close)
            undo.push(lambda kind, *_: directory.discard() if kind else None)
            self.path = directory.path
            pool = Pool(settings.threads)
            super().__init__(self.path, directory.tables, settings.device, pool)
            undo.callback(self.pool.close)
            undo.callback(self.observers.close)
            self._log = BlockLog(self.path, list(self.tables), disk_bytes=settings.disk)
            undo.callback(self._log.close)
            checkpoints = Checkpoints(self._log)
            self._log.truncate_to(checkpoints.cut.blocks)
            self._sizes = sizes(directory.tables, settings.ram, settings.hbm, settings.ghost)
            counts = checkpoints.counts() if any(t.admission for t in directory.tables) else {}
            self.stacks = self._make_stacks(checkpoints.cut, doorkeepers(directory.tables, counts))
            self.ghost = Ghost(lambda: self.stacks) if settings.ghost else None
            self.observers.add(self.ghost)
            self._upkeep = Upkeep(self._log, self.planner, checkpoints, settings)
            undo.callback(self._upkeep.close)
            self._upkeep.watch(self.stacks)
            self.coming = Coming(self.planner, lambda: self.stacks, self._upkeep.space.has_ample)
            self._survey = Survey(self.planner, self._upkeep.compactor, self.settle)
            self._resources = undo.pop_all()

    # -- batches ---------------------------------------------------------------------------------

    def stage_asked(
        self, asked: Mapping[str, Asked], *, ahead: int = 0, beside: bool = False
    ) -> WorkingSet:
        """See `Tables.stage_asked`; rows are never behind here."""
        self._upkeep.prepare({name: len(one.keys) for name, one in asked.items()})
        self._upkeep.compactor.wake()
        with self.planner:
            parts: dict[str, Part] = {}
            try:
                with self.planner.changing():
                    number = self.coming.turn(asked)
                    for name, one in asked.items():
                        positions = self.coming.pin(name, one, number)
                        parts[name] = Part(one.keys, positions, one.counts, one.inverses)
                    self.coming.passed(number)
            except BaseException:
                self._unpin(parts)
                raise
            working_set = WorkingSet(parts, self._release)
            self.observers.staged(asked)
            return working_set

    @property
    def crowded(self) -> bool:
        """True when a cache should shrink soon and pins stand in the way."""
        with self.planner:
            return any(s.hierarchy.wants_room and s.top.pinned for s in self.stacks.values())

    # -- rows ------------------------------------------------------------------------------------

    def apply(
        self, table: str, records: Sequence[Record], *, lr: float, step: int, scale: float
    ) -> int:
        """See `Tables.apply`; rows change where they are."""
        return apply(self.stacks[table], records, self.pool, lr=lr, step=step, scale=scale)

    def write(
        self, table: str, keys: torch.Tensor | NDArray[Any], embeddings: torch.Tensor | Floats
    ) -> None:
        """Set embeddings and reset their optimizer state; of a key given twice the last counts.

        keys: (N,) integers. embeddings: (N, D) floats. Raises: KeyRangeError; ConfigError.
        """
        step = self._stack(table).step
        self.put(table, self._new_rows(table, keys, embeddings, step))

    def put(self, table: str, rows: Rows) -> None:
        """Set whole rows, optimizer state included; those marked dirty become part of the table.

        Raises: DiskFullError, before anything has changed.
        """
        self._spec(table)
        self._upkeep.prepare({table: len(rows)})
        with self.stepping(), self.planner:
            self.settle()
            with self.planner.changing():
                self.stacks[table].put(rows)

    def hand_out(self, table: str, keys: Keys) -> tuple[Rows, Mask]:
        """Copies of whole rows for an owner elsewhere, who writes them back by `put`; and a mask of
        those that are missing. They are the first to be evicted here. keys: (U,) uint64, unique.
        """
        with self.planner, self.planner.changing():
            self.settle()
            self.stacks[table].hierarchy.make_room(len(keys))
            return self.stacks[table].hierarchy.lookup(keys, np.ones(len(keys), np.int32))

    def peek(self, table: str, keys: Keys) -> Floats:
        """`read` for unique keys: (U,) uint64 -> (U, D) float32."""
        return self._peek(self._spec(table).name, keys)

    def delete(self, table: str, keys: torch.Tensor | NDArray[Any]) -> None:
        """Forget rows on every tier, for good: no crash and no `resume` brings them back.

        Unknown keys are fine. A key seen again starts anew. Durable on return. The bytes leave the
        disk at compaction (`terrace compact` does it at once). Raises: StoreError when a row is
        part of a batch in flight.
        """
        unique = np.unique(self._keys(table, keys))
        with self.planner:
            self.settle()
            if len(idle(self.stacks[table], unique)) < len(unique):
                raise StoreError(
                    f"delete: table {table!r}: some keys belong to a batch in flight; "
                    f"finish the step (or the prefetch loop) first"
                )
            with self.planner.changing():
                self.stacks[table].delete(unique)

    def expire(self, older_than_steps: int, table: str | None = None) -> int:
        """Delete rows that no step has changed in the last so many steps: how many there were.

        older_than_steps: counted from the table's last step; rows that were `write`-n count as
        changed then. table: only this one. Rows of a batch in flight stay. Reads the whole file
        once. Durable on return. Raises: ConfigError; DiskFullError.
        """
        if older_than_steps < 0:
            raise ConfigError(f"expire: expected 0 steps or more, got {older_than_steps}")
        stacks = self.stacks.values() if table is None else [self._stack(table)]
        return sum(self._survey.expire(stack, older_than_steps) for stack in stacks)

    def rows(self, table: str) -> Generator[Rows, None, None]:
        """All rows that were ever changed and are not deleted, in pieces, by rising mixed key.

        Writes what is dirty to the log first (with rows narrower than float32 this rounds them, as
        a checkpoint does). The store must not change while this goes on.
        """
        return self._survey.pieces(self._stack(table), SsdTier.by_key)

    def scan(self, table: str) -> Generator[Rows, None, None]:
        """The rows that `rows` gives, in the order in which they were written.

        Reads the file from front to back, where `rows` reads all over it: the one to use on tables
        larger than memory.
        """
        return self._survey.pieces(self._stack(table), SsdTier.scan)

    def digest(self) -> int:
        """Sum mod 2**64 over all rows of all tables of a 64-bit hash: see `ps.digest`."""
        total = sum(rows_digest(name, rows) for name in self.tables for rows in self.scan(name))
        return total % 2**64

    # -- durability ------------------------------------------------------------------------------

    def checkpoint(
        self, step: int, state: Mapping[str, Any] | None = None, *, keep: int = KEPT
    ) -> None:
        """Make everything up to now durable under ``step``, with the caller's state.

        state: a tree of dicts, lists, JSON values and tensors. Call it between steps. When it
        returns, no crash can undo it; all but ``keep`` are given up, the oldest first. Raises:
        DiskFullError, before anything has changed.
        """
        self._upkeep.checkpoint(step, state or {}, keep)

    def fact(self, name: str) -> bytes | None:
        """What was committed under this name. Raises: CorruptError."""
        with self.planner:
            return self._log.fact(name)

    def commit(self, facts: Mapping[str, bytes | None]) -> None:
        """Make these durable now, beside any cut. Raises: DiskFullError."""
        with self.planner, self.planner.changing():
            self._log.commit(facts)

    def note(self, notes: Notes) -> None:
        """From now on commit these with every cut."""
        self._upkeep.notes = notes

    def prepared(self, rows: Mapping[str, int], beside: int = 0) -> AbstractContextManager[None]:
        """See `Upkeep.prepared`."""
        return self._upkeep.prepared(rows, beside)

    def never_fewer_checkpoints(self, count: int) -> None:
        """Do not give up checkpoints beyond so many for want of room."""
        with self.planner:
            self._upkeep.checkpoints.least = count

    def discard_checkpoints(self, after: int) -> None:
        """Forget the checkpoints of steps later than ``after``."""
        with self.planner, self.planner.changing():
            self._upkeep.checkpoints.forget_newer(after)

    def state_of(self, step: int) -> dict[str, Any]:
        """The caller's state of the newest checkpoint of this step. Raises: StoreError."""
        with self.planner:
            found = self._upkeep.checkpoints.newest(step)
        if found is None:
            raise StoreError(f"{self.path}: expected a checkpoint of step {step}, found none")
        return {name: value for name, value in found[2].items() if name != COUNTS}

    def keep_checkpoints(self, count: int) -> None:
        """Give up the oldest checkpoints until so many are left."""
        with self.planner, self.planner.changing():
            while len(self._upkeep.checkpoints.steps) > count:
                self._upkeep.checkpoints.give_up_older()

    @property
    def wants_checkpoint(self) -> bool:
        """True when the disk is nearly full, and a checkpoint would let old blocks go."""
        return self._upkeep.space.wants_checkpoint

    def cut(self) -> None:
        """Make everything up to now durable; opening the store shows it. Between steps.

        Raises: DiskFullError; the last cut stands.
        """
        self._upkeep.cut()

    def stepping(self) -> AbstractContextManager[None]:
        """While a step changes rows: no cut falls inside, and at its end durability is kept.

        Raises: DiskFullError at the end, also that of an earlier cut.
        """
        return self._upkeep.stepping()

    @property
    def stored_rows(self) -> int:
        """See `Tables.stored_rows`."""
        return sum(len(stack.ssd) for stack in self.stacks.values())

    @property
    def checkpoints(self) -> list[int]:
        """Steps of the kept checkpoints, oldest first."""
        with self.planner:
            return self._upkeep.checkpoints.steps

    def resume(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """Go back to the newest checkpoint: (its step, the caller's state then).

        step: to the newest of this step. What came after it is gone for good, and figures start
        anew. Raises: StoreError when there is no checkpoint, or a batch is in flight; CorruptError
        before anything has changed.
        """
        with self._upkeep.standing_still(), self.planner:
            self.settle()
            if self.prefetching or any(stack.top.pinned for stack in self.stacks.values()):
                raise StoreError(
                    f"{self.path}: resume: a batch is in flight; end the prefetch loop, drop its "
                    f"outputs and call zero_grad() of the SparseOptimizer"
                )
            newest = self._upkeep.checkpoints.newest(step)
            if newest is None:
                raise StoreError(
                    f"{self.path}: expected a checkpoint "
                    f"{'' if step is None else f'of step {step} '}"
                    f"to resume from, found none; start without resuming"
                )
            found, cut, state = newest
            known = doorkeepers(self.tables.values(), state.pop(COUNTS, {}))
            with self.planner.changing():
                self._rewind(found, cut, known)
            return found, state

    # -- figures and the end ---------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counters and bytes of every tier as JSON values; counters only grow."""
        with self.planner:
            return {
                "tables": {name: stack.report() for name, stack in self.stacks.items()},
                "disk_bytes": self._upkeep.space.report(),
                "checkpoints": self._upkeep.checkpoints.steps,
            }

    def tiers(self) -> dict[str, Any]:
        """See `Tables.tiers`."""
        return {name: stack.report() for name, stack in self.stacks.items()}

    def check(self) -> list[str]:
        """Read everything and verify every invariant: what is broken, one line each."""
        with self.planner:
            return self._upkeep.check()

    def close(self) -> None:
        """Make a cut of everything, then let go of memory, threads and files. Twice is fine.

        After a failure (a full disk, say) no cut is made: the last one stands.
        """
        self._upkeep.close()
        with self._upkeep.standing_still(), self.planner.ending():
            try:
                if not self.planner.closed and self.planner.failure is None:
                    self._upkeep.cut()
            finally:
                self.abandon()

    def abandon(self) -> None:
        """Let go of everything without a cut: what came after the last one is lost."""
        self._upkeep.close()
        with self.planner.ending():
            self.planner.closed = True
            self._resources.close()

    # -- private ---------------------------------------------------------------------------------

    def _stack(self, table: str) -> Stack:
        return self.stacks[self._spec(table).name]

    def _peek(self, table: str, keys: Keys) -> Floats:
        with self.planner:
            rows, missing = self.stacks[table].hierarchy.peek(keys)
        spec = self.tables[table]
        values: Floats = rows.values
        values[missing] = spec.fresh(keys[missing])
        return values[:, : spec.dim]

    def _rewind(self, step: int, cut: Cut, known: Mapping[str, Doorkeeper]) -> None:
        self._log.wait()
        self._upkeep.go_back(step, cut)
        self.stacks = {}  # first, so that old and new caches never exist together
        self._upkeep.watch({})
        self._log.truncate_to(cut.blocks)
        self.stacks = self._make_stacks(cut, known)
        self._upkeep.watch(self.stacks)

    def _make_stacks(self, cut: Cut, known: Mapping[str, Doorkeeper]) -> dict[str, Stack]:
        tables, options = self.tables.values(), (self.device, self._policy)
        return make_stacks(tables, self._log, self._sizes, cut, known, *options)
