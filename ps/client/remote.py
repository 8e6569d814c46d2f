"""RemoteStore: tables whose rows live on shards; what `ps.connect` returns.

Mode async: shards own the rows and apply the gradients that workers push; a worker computes in
copies (`Replicas`) that are no more than ``staleness`` steps old: with 0, each batch sees all
pushes of the step before, of every worker. A batch that is staged ahead asks for rows as new as it
will need then. Copies that arrive for rows which an earlier batch uses are put in place when the
batch is entered, so no row changes under a running step.

Threads: as `Tables`. Nobody waits for a shard with the planner's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ps.client.client import Client, Step
from ps.client.marker import Marker
from ps.client.replicas import Replicas
from ps.pool import Pool
from ps.record import Record, condense
from ps.stack import divide
from ps.table import Table
from ps.tables import NothingComes, Tables
from ps.workingset import Asked, Part, WorkingSet
from storage.errors import StoreError
from storage.keys import as_keys
from storage.rows import Floats, Keys, Mask, Positions

_STAGING_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, eq=False)
class _Arrived:
    """Copies for rows that an earlier batch uses: they wait until it is done."""

    table: str
    positions: Positions
    values: Floats
    clock: int


class RemoteStore(Tables):
    """See the module's docstring. client: owned from now on. size: budget of the top tier in bytes,
    on ``device``.

    Raises: ConfigError.
    """

    stacks: dict[str, Replicas]

    def __init__(
        self,
        client: Client,
        tables: Sequence[Table],
        *,
        staleness: int,
        size: int,
        device: torch.device,
        policy: str,
        threads: int,
    ) -> None:
        names = ",".join(link.name for link in client.links)
        super().__init__(names, tables, device, Pool(threads))
        self.staleness = staleness
        self.rank, self.world = client.identity.rank, client.identity.world
        self.coming = NothingComes()
        self.client = client
        self.marker = Marker(client)
        self.steps_made = 0
        # A call that was not announced is staged in the loop's thread, beside the prefetch thread.
        self._staging = threading.Lock()
        self._pending: dict[int, _Arrived] = {}  # by id: those of working sets not yet entered
        shares = divide(size, tables)
        self.stacks = {
            table.name: Replicas(table, shares[table.name], device=device, policy=policy)
            for table in tables
        }

    # -- batches ---------------------------------------------------------------------------------

    def stage_asked(
        self, asked: Mapping[str, Asked], *, ahead: int = 0, beside: bool = False
    ) -> WorkingSet:
        """See `Tables.stage`; what this worker lacks, or has too old, is pulled.

        Raises: WorkingSetError; UnavailableError.
        """
        assert self.staleness is not None
        if not self._staging.acquire(timeout=_STAGING_SECONDS):
            raise StoreError(f"{self.path}: a batch was staged for {_STAGING_SECONDS:.0f} s")
        try:
            due = self.steps_made + ahead
            working_set = self._stage(asked, due, waiting=ahead > 0)
            self.observers.staged(asked)
            return working_set
        finally:
            self._staging.release()

    def _stage(self, asked: Mapping[str, Asked], due: int, *, waiting: bool) -> WorkingSet:
        """waiting: copies for rows that others use wait until the batch is entered."""
        least = self._least(due)
        parts: dict[str, Part] = {}
        lacking: dict[str, tuple[Mask, Mask]] = {}
        with self.planner:
            for name, one in asked.items():
                self.stacks[name].ensure_room(one.keys)
            with self.planner.changing():
                for name, one in asked.items():
                    positions, pull, used = self.stacks[name].pin(
                        one.keys, one.counts, least, ahead=waiting
                    )
                    parts[name] = Part(one.keys, positions, one.counts, one.inverses)
                    lacking[name] = (pull, used if waiting else np.zeros_like(used))
        working_set = WorkingSet(parts, self._release)
        working_set.due = due
        try:
            for name, part in parts.items():
                working_set.arrived += self._pull(name, part, *lacking[name], least)
        except BaseException:
            with self.planner:
                self._forget(parts, lacking)
            raise
        with self.planner:
            for name, part in parts.items():
                self.stacks[name].observe(part.positions, due, ahead=waiting)
        return working_set

    def enter(self, working_set: WorkingSet) -> None:
        """See `Tables.enter`."""
        while working_set.arrived:
            one = working_set.arrived.pop(0)
            self._pending.pop(id(one), None)
            self.stacks[one.table].fill(one.positions, one.values)
            self.stacks[one.table].mark(one.positions, one.clock)
        if self.steps_made > working_set.due:
            self._renew(working_set)

    def _renew(self, working_set: WorkingSet) -> None:
        """More steps were made than one a batch: pull what has become too old meanwhile."""
        least = self._least(self.steps_made)
        with self._staging:
            for name, part in working_set.parts.items():
                old = self.stacks[name].top.steps[part.positions] <= least
                list(self._pull(name, part, old, np.zeros_like(old), least))
        working_set.due = self.steps_made

    def _least(self, due: int) -> int:
        """The clock that copies must have for this step."""
        assert self.staleness is not None
        return max(0, due - self.staleness)

    def _pull(
        self, name: str, part: Part, pull: Mask, waits: Mask, least: int
    ) -> Iterator[_Arrived]:
        """Pull the rows of one table that are lacking; those that have to wait are given back."""
        wanted = np.flatnonzero(pull)
        if not len(wanted):
            return
        stack, keys = self.stacks[name], part.keys[wanted]
        for piece in self.client.pull(name, keys, least=least, own=self.steps_made):
            which = wanted[piece.indices]
            positions, later = part.positions[which], waits[which]
            if later.any():
                one = _Arrived(name, positions[later], piece.values[later], piece.clock)
                self._pending[id(one)] = one
                yield one
                stack.promise(positions[later], piece.clock)
                positions, values = positions[~later], piece.values[~later]
            else:
                values = piece.values
            stack.fill(positions, values)
            stack.mark(positions, piece.clock)

    def _forget(self, parts: Mapping[str, Part], lacking: Mapping[str, tuple[Mask, Mask]]) -> None:
        """What was to be pulled has perhaps not come."""
        for name, part in parts.items():
            self.stacks[name].mark(part.positions[lacking[name][0]], -1)

    def _release(self, working_set: WorkingSet) -> None:
        # Never entered: what came for it will be in no place, though it was promised.
        for one in working_set.arrived:
            self._pending.pop(id(one), None)
            self.stacks[one.table].promise(one.positions, -1)
        super()._release(working_set)

    # -- steps -----------------------------------------------------------------------------------

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """See `Tables.stepping`; at the end every shard knows that this worker made a step."""
        yield
        self.client.advance(self.steps_made + 1)
        self.steps_made += 1

    def apply(
        self, table: str, records: Sequence[Record], *, lr: float, step: int, scale: float
    ) -> int:
        """See `Tables.apply`; the shards apply, some time later.

        Rows are skipped here when not finite, and at the shard as well.
        """
        spec = self.tables[table]
        positions, gradients, uses = condense(spec.dim, records, self.pool)
        keys = self.stacks[table].top.keys_at(positions)
        self.client.push(table, keys, gradients, uses, Step(lr, step, scale))
        if all(record.finite for record in records):
            return 0
        return int(np.count_nonzero(~np.isfinite(gradients * np.float32(scale)).all(axis=1)))

    def await_steps(self) -> None:
        """See `Tables.await_steps`. Raises: UnavailableError."""
        self.client.flush()

    # -- rows ------------------------------------------------------------------------------------

    def write(
        self, table: str, keys: torch.Tensor | NDArray[Any], embeddings: torch.Tensor | Floats
    ) -> None:
        """See `Tables.write`; the shards have them when it returns."""
        rows = self._new_rows(table, keys, embeddings, 0)
        values = np.ascontiguousarray(rows.values[:, : self.tables[table].dim])
        self.client.write(table, rows.keys, values)
        stack = self.stacks[table]
        with self._staging, self.planner:
            # Also under a batch in flight, as on tiers of one's own; the next one pulls it.
            positions = stack.top.place(rows.keys)
            here = positions >= 0
            positions, values = positions[here], values[here]
            stack.fill(positions, values)
            stack.mark(positions, -1)
            for one in list(self._pending.values()):
                if one.table == table:
                    _, mine, theirs = np.intersect1d(positions, one.positions, return_indices=True)
                    one.values[theirs] = values[mine]

    def delete(self, table: str, keys: torch.Tensor | NDArray[Any]) -> None:
        """See `Tables.delete`. Raises: StoreError when a row is part of a batch in flight."""
        unique = np.unique(as_keys(keys))
        stack = self.stacks[self._spec(table).name]
        with self.planner:
            self.settle()
            positions = stack.top.place(unique)
            if not stack.top.unpinned(positions[positions >= 0]).all():
                raise StoreError(
                    f"delete: table {table!r}: some keys belong to a batch in flight; finish the "
                    f"step (or the prefetch loop) first"
                )
            stack.top.delete(unique)
        self.client.delete(table, unique)

    def digest(self) -> int:
        """See `Tables.digest`; of the rows of all shards."""
        self.client.flush()
        return sum(map(int, self.client.look("digest"))) % 2**64

    def _peek(self, table: str, keys: Keys) -> Floats:
        self.client.flush()  # its own pushes
        values = np.empty((len(keys), self.tables[table].dim), np.float32)
        for piece in self.client.peek(table, keys):
            values[piece.indices] = piece.values
        return values

    # -- durability, figures and the end ---------------------------------------------------------

    def checkpoint(self, step: int, state: Mapping[str, Any] | None = None) -> None:
        """See `Tables.checkpoint`; of all shards at once, with the state of rank 0."""
        self.planner.ensure_usable()
        self.marker.checkpoint(int(step), state or {})

    @property
    def wants_checkpoint(self) -> bool:
        """See `Tables.wants_checkpoint`; of any shard."""
        return self.client.wants_checkpoint

    @property
    def stored_rows(self) -> int:
        """See `Tables.stored_rows`; of all shards, as they were when this worker came in."""
        return self.client.rows

    @property
    def checkpoints(self) -> list[int]:
        """See `Tables.checkpoints`."""
        kept: list[int] = self.client.look("stats")[0]["checkpoints"]
        return kept

    def resume(self) -> tuple[int, dict[str, Any]]:
        """See `Tables.resume`; in every worker, all shards go back together.

        Raises: StoreError when there is no checkpoint, or a batch is in flight.
        """
        with self.planner:
            self.settle()
            if self.prefetching or any(stack.top.pinned for stack in self.stacks.values()):
                raise StoreError(
                    f"{self.path}: resume: a batch is in flight; end the prefetch loop, drop its "
                    f"outputs and call zero_grad() of the SparseOptimizer"
                )
        found = self.marker.resume()
        self.steps_made = 0
        with self.planner:
            for stack in self.stacks.values():
                stack.forget()
        return found

    def stats(self) -> dict[str, Any]:
        """See `Tables.stats`: this worker's copies, and under "shards" what each shard says.

        A shard that is away is not waited for: {"shard": its number, "away": why}.
        """
        return {
            "tables": self.tiers(),
            "shards": self.client.stats(),
            "skipped_rows": sum(outbox.skipped for outbox in self.client.outboxes),
        }

    def tiers(self) -> dict[str, Any]:
        """See `Tables.tiers`; the copies of this worker."""
        return {name: stack.report() for name, stack in self.stacks.items()}

    def close(self) -> None:
        """Wait until the shards have all changes and made them durable, then let go."""
        if self.planner.closed:
            return
        try:
            if self.planner.failure is None and self.client.broken is None:
                self.client.cut(closing=True)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of everything; what was not applied yet is lost."""
        with self.planner.ending():
            self.planner.closed = True
        self.client.close()
        self.pool.close()
        self.observers.close()
