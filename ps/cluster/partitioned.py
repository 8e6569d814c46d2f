"""PartitionedStore: one store of several workers, each the owner of a part of the keys.

Every key belongs to one worker, by its bucket: that worker has the row in a store of its own, with
all tiers, and applies all steps to it. For a batch each worker asks the owners for its keys, gets
embeddings when it computes, and sends back the sum of each row's gradients; the owner adds those
of all workers, in the order of ranks. So a step is that of one worker with the whole batch, up to
the order of a sum. A row travels once to each worker that uses it, however often it does.

All workers call the same methods in the same order, each with its own keys: all but `tiers`,
`stored_rows`, `checkpoints`, `wants_checkpoint` and `close` are collective.

Threads: as `Tables`; the prefetch thread has an exchange of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ps.cluster.commits import Commits
from ps.cluster.exchange import Exchange
from ps.cluster.loan import Loan
from ps.cluster.route import EndedError, LaterError, Lent, Route
from ps.partition import Partition
from ps.record import Record, merged
from ps.store import Store
from ps.tables import NothingComes, Tables
from ps.workingset import Asked, WorkingSet
from storage.array import FloatArray
from storage.errors import StoreError, TerraceError, UnavailableError, WorkingSetError
from storage.rows import Counts, Floats, Keys, Positions

_PIECE = 1 << 14
_NO_WEIGHTS = np.empty(0, np.float32)
_NO_KEYS = (np.empty(0, np.uint64), np.empty(0, np.int32))
Sums = tuple[Keys, Tensor, Counts, float, int]
"""Of one table's step: keys, (U, D) gradients, uses, rate and number of the step."""


class PartitionedStore(Tables):
    """See the module's docstring. own: this worker's part, closed with this. trains, stages:
    exchanges of the training and of the prefetch thread. resources: let go of at the end.
    """

    def __init__(self, own: Store, trains: Exchange, stages: Exchange) -> None:
        self.own = own
        self.resources = ExitStack()
        super().__init__(own.path.parent, own.tables.values(), own.device, own.pool)
        self.planner = own.planner
        self.rank, self.world = trains.rank, trains.world
        self.coming = NothingComes()
        self._trains, self._stages = trains, stages
        self._partition = Partition(self.world)
        self._beside = False
        self._sums: dict[str, Sums] = {}
        self._version = self._saved = 0
        self._commits = Commits(own, trains)

    # -- batches ---------------------------------------------------------------------------------

    def stage_asked(
        self, asked: Mapping[str, Asked], *, ahead: int = 0, beside: bool = False
    ) -> WorkingSet:
        """See `Tables.stage_asked`; where it fails at one worker it does at all."""
        exchange = self._stages if beside else self._trains
        needs = {
            name: (asked[name].keys, asked[name].counts) if name in asked else _NO_KEYS
            for name in self.tables
        }
        try:
            later = ahead > 0 and self.own.crowded
            route = Route.plan(exchange, self._partition, needs, later=later)
        except EndedError:
            self._beside = False
            raise
        except LaterError:
            raise WorkingSetError(
                f"{self.path}: a worker's cache has to shrink first", needed_bytes=0
            ) from None
        own = self._stage_own(exchange, route)
        self.observers.staged(asked)
        return Loan(asked, route, own, self._release)

    def _stage_own(self, exchange: Exchange, route: Route) -> WorkingSet:
        """Make resident what all workers need of this one. Collective, also where it fails."""
        found: WorkingSet | None = None
        failure: TerraceError | None = None
        try:
            lent = {name: Asked(one.keys, one.uses, []) for name, one in route.lent.items()}
            found = self.own.stage_asked(lent)
        except TerraceError as error:
            failure = error
        short = failure.needed_bytes + 1 if isinstance(failure, WorkingSetError) else 0
        short, broken = exchange.most(short, int(failure is not None and not short))
        if failure is not None:
            raise failure
        if broken:
            raise StoreError(f"{self.path}: another worker could not stage its part of a batch")
        if short:
            raise WorkingSetError(
                f"{self.path}: another worker has too little room for its part of a batch; give "
                f"each more by --ram (or --hbm), or take smaller batches",
                needed_bytes=short - 1,
            )
        assert found is not None
        return found

    def rows_of(self, working_set: WorkingSet, table: str) -> tuple[Tensor, Positions]:
        """See `Tables.rows_of`; they come from their owners, anew when a step has changed them."""
        assert isinstance(working_set, Loan)
        if working_set.version != self._version:
            lent = {
                name: self._gathered(name, working_set.own.parts[name].positions[one.inverse])
                for name, one in working_set.route.lent.items()
            }
            working_set.rows = working_set.route.from_owners(self._trains, lent)
            working_set.version = self._version
        return working_set.rows[table], working_set.route.wanted[table].places

    def settle(self, tick: int | None = None) -> None:
        """See `Tables.settle`; of the rows that are lent."""
        self.own.settle(tick)

    def begin_prefetch(self, *, beside: bool) -> None:
        """See `Tables.begin_prefetch`."""
        self._beside = beside
        super().begin_prefetch(beside=beside)

    def end_prefetch(self) -> None:
        """See `Tables.end_prefetch`. Collective: other workers' threads wait for no batch more."""
        ends, self._beside = self._beside, False
        if ends:
            with suppress(UnavailableError):  # then there is nobody who waits
                Route.end(self._stages, len(self.tables))
        super().end_prefetch()

    # -- steps -----------------------------------------------------------------------------------

    @property
    def due(self) -> list[str]:
        """See `Tables.due`; of any worker. Collective."""
        waits = self._trains.most(*(int(bool(self.waiting.get(name))) for name in self.tables))
        return [name for name, waits_here in zip(self.tables, waits, strict=True) if waits_here]

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """See `Tables.stepping`; at its end the owners have all gradients and have applied them."""
        self._sums = {}
        with self.own.stepping():
            yield
            self._apply_all()
        self._version += 1

    def apply(
        self, table: str, records: Sequence[Record], *, lr: float, step: int, scale: float
    ) -> int:
        """See `Tables.apply`; the owners apply, at the end of the step.

        Rows that are not finite are counted at the worker whose gradient they are of.
        """
        keys, gradients, uses = self._merged(table, records)
        if scale != 1.0:
            gradients *= scale
        self._sums[table] = (keys, gradients, uses, lr, step)
        if all(record.finite for record in records):
            return 0
        return int((~gradients.isfinite().all(dim=1)).sum())

    def squares(self, table: str, record: Record | None) -> float:
        """See `Tables.squares`. Collective."""
        keys, gradients, uses = self._merged(table, [] if record is None else [record])
        route = Route.plan(self._trains, self._partition, {table: (keys, uses)})
        came = route.to_owners(self._trains, {table: gradients})[table]
        lent = route.lent[table]
        total = came.new_zeros((len(lent.keys), came.shape[1]))
        total.index_add_(0, torch.from_numpy(lent.inverse).to(came.device), came)
        return self._trains.sum(float(total.double().square().sum()))[0]

    def _merged(self, table: str, records: Sequence[Record]) -> tuple[Keys, Tensor, Counts]:
        """Each row once with the sum of its gradients, and its uses."""
        dim = self.tables[table].dim
        if not records:
            return _NO_KEYS[0], torch.zeros((0, dim), device=self.device), _NO_KEYS[1]
        positions, gradients, uses = merged(dim, records, self.pool)
        return positions.view(np.uint64), gradients, uses

    def _apply_all(self) -> None:
        """All workers' sums to the owners, who apply them. Collective."""
        if not self._sums:
            return
        needs = {name: (keys, uses) for name, (keys, _, uses, _, _) in self._sums.items()}
        route = Route.plan(self._trains, self._partition, needs)
        came = route.to_owners(self._trains, {name: one[1] for name, one in self._sums.items()})
        for name, (_, _, _, lr, step) in self._sums.items():
            record = self._record(name, route.lent[name], came[name])
            self.own.apply(name, [record], lr=lr, step=step, scale=1.0)
        self._sums = {}

    def _record(self, table: str, lent: Lent, gradients: Tensor) -> Record:
        """The gradients of all workers, those of worker 0 first, as of one use."""
        with self.planner:
            positions = self.own.stacks[table].top.place(lent.keys)
        if (positions < 0).any():
            raise StoreError(
                f"{self.path}: step: table {table!r}: a gradient came for a row that is in no "
                f"batch here; all workers have to make the same calls in the same order"
            )
        each = np.arange(len(lent.inverse), dtype=np.int32)
        return Record(
            positions, lent.inverse, each, _NO_WEIGHTS, gradients, None, (), True, lent.uses
        )

    # -- rows ------------------------------------------------------------------------------------

    def most(self, count: int) -> int:
        """See `Tables.most`. Collective."""
        return self._trains.most(count)[0]

    def write(
        self, table: str, keys: torch.Tensor | NDArray[Any], embeddings: torch.Tensor | Floats
    ) -> None:
        """See `Tables.write`. Collective; of a key that several give the highest rank's counts."""
        rows = self._new_rows(table, keys, embeddings, 0)
        values = np.ascontiguousarray(rows.values[:, : self.tables[table].dim])
        for piece in self._pieces(len(rows.keys)):
            route = self._route(table, rows.keys[piece])
            sent = {table: torch.from_numpy(values[piece])}
            came = route.to_owners(self._trains, sent)[table].numpy()
            lent = route.lent[table]
            self._trains.all(
                "write",
                lambda lent=lent, came=came: self._write(table, lent, came),  # type: ignore[misc]
            )
        self._version += 1

    def delete(self, table: str, keys: torch.Tensor | NDArray[Any]) -> None:
        """See `Tables.delete`. Collective: all workers' keys are deleted."""
        unique = np.unique(self._keys(table, keys))
        for piece in self._pieces(len(unique)):
            lent = self._route(table, unique[piece]).lent[table]
            self._trains.all("delete", lambda lent=lent: self.own.delete(table, lent.keys))  # type: ignore[misc]
        self._version += 1

    def digest(self) -> int:
        """See `Tables.digest`; of all workers' rows. Collective."""
        own = self.own.digest().to_bytes(8, "little")
        return sum(int.from_bytes(word, "little") for word in self._trains.words(own)) % 2**64

    def _peek(self, table: str, keys: Keys) -> Floats:
        """Collective: each worker gets the rows of its keys."""
        route = self._route(table, keys)
        lent = route.lent[table]
        values = torch.from_numpy(self.own.peek(table, lent.keys)[lent.inverse])
        rows = route.from_owners(self._trains, {table: values})[table].numpy()
        return rows[route.wanted[table].places]

    def _write(self, table: str, lent: Lent, values: Floats) -> None:
        if len(values):
            self.own.write(table, lent.keys[lent.inverse], values)

    def _pieces(self, count: int) -> list[slice]:
        """As many at every worker. Collective."""
        return [slice(i * _PIECE, (i + 1) * _PIECE) for i in range(self.most(-(-count // _PIECE)))]

    def _route(self, table: str, keys: Keys) -> Route:
        uses = np.ones(len(keys), np.int32)
        return Route.plan(self._trains, self._partition, {table: (keys, uses)})

    def _gathered(self, table: str, positions: Positions) -> Tensor:
        """(N, D): this worker's rows, on the device."""
        array = self.own.stacks[table].top.array
        assert isinstance(array, FloatArray)
        chosen = torch.from_numpy(positions).to(array.embeddings.device)
        return array.embeddings.index_select(0, chosen)

    # -- durability, figures and the end ---------------------------------------------------------

    def checkpoint(self, step: int, state: Mapping[str, Any] | None = None) -> None:
        """See `Tables.checkpoint`; of all workers at once, with the state of rank 0. Collective.

        Again at the same step it makes none, while no row has changed. Raises: ConfigError.
        """
        if int(step) == self._commits.step and self._version == self._saved:
            return
        self._commits.make(int(step), state or {})
        self._saved = self._version

    @property
    def wants_checkpoint(self) -> bool:
        """See `Tables.wants_checkpoint`; of this worker's disk."""
        return self.own.wants_checkpoint

    @property
    def stored_rows(self) -> int:
        """See `Tables.stored_rows`; of this worker's part."""
        return self.own.stored_rows

    @property
    def checkpoints(self) -> list[int]:
        """See `Tables.checkpoints`; those that count, as far as this worker knows."""
        return [step for step in self.own.checkpoints if step <= self._commits.step]

    def resume(self) -> tuple[int, dict[str, Any]]:
        """See `Tables.resume`; all workers go back to one checkpoint. Collective."""
        found = self._commits.go_back()
        self._version += 1
        self._saved = self._version
        return found

    def stats(self) -> dict[str, Any]:
        """See `Tables.stats`: this worker's, and under "workers" what each says. Collective."""
        own = self.own.stats()
        said = self._trains.words(json.dumps(own).encode())
        return {"tables": own["tables"], "workers": [json.loads(word) for word in said]}

    def tiers(self) -> dict[str, Any]:
        """See `Tables.tiers`."""
        return self.own.tiers()

    def close(self) -> None:
        """See `Tables.close`; of this worker's part. Nobody is waited for."""
        try:
            self.own.close()
        finally:
            self.resources.close()
            self.observers.close()

    # -- private ---------------------------------------------------------------------------------

    def _release(self, working_set: WorkingSet) -> None:
        assert isinstance(working_set, Loan)
        self.own.tick = self.tick
        working_set.give_back()
