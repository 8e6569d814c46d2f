"""Tables: what modules and optimizers see of a store, wherever its rows live.

The rows of a batch are made resident and pinned in the top tier (`stage`); the modules compute
there. Between backward and step the gradients wait here: ``waiting`` has the records of each
table, and ``anchors`` the tensors through which autograd reaches them (see `worker.optimizer`).
`Store` has all tiers in this process, `ps.client.remote.RemoteStore` has rows on shards.

Threads: one lock, the planner's, guards the tiers. Batches are staged by one thread at a time (the
prefetch thread, or the caller's own).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ps.observer import Observers
from ps.planner import Planner
from ps.pool import Pool
from ps.record import Record
from ps.table import Table
from ps.workingset import Asked, Part, WorkingSet
from storage.cache import CacheTier
from storage.errors import ConfigError
from storage.keys import Deduper, as_keys, check_range
from storage.rows import Floats, Keys, Positions, Rows

_READ = 1 << 14


class Level(Protocol):
    """What is needed of one table's tiers here: the top one."""

    @property
    def top(self) -> CacheTier:
        """Where rows are worked on."""
        ...

    def unpin(self, positions: Positions) -> None:
        """Let go of what was pinned for one batch."""
        ...


class Announcements(Protocol):
    """Where a prefetch loop says which batches will come: `ps.coming.Coming`, or nothing."""

    def announce(self, batch: Mapping[str, Asked]) -> None:
        """This batch will be staged after all that were announced before it."""
        ...

    def give_up(self) -> bool:
        """Give memory back to the caches: whether there was any."""
        ...

    def end(self) -> None:
        """The loop is over."""
        ...


class NothingComes:
    """`Announcements` that make no difference."""

    def announce(self, batch: Mapping[str, Asked]) -> None:
        """See `Announcements`."""

    def give_up(self) -> bool:
        """See `Announcements`."""
        return False

    def end(self) -> None:
        """See `Announcements`."""


class Tables(ABC):
    """See the module's docstring.

    path: where the rows are, for people. device: of the top tier. tick: of the batch that is
    current, set by the prefetch loop, as are ``staged`` and ``prefetching``. staleness: the most
    steps that rows of a batch may be behind, None where they never are. rank, world: of this
    process among the workers of the job.
    """

    staleness: int | None = None
    rank, world = 0, 1
    coming: Announcements
    stacks: Mapping[str, Any]

    def __init__(
        self, path: Any, tables: Iterable[Table], device: torch.device, pool: Pool
    ) -> None:
        self.path = path
        self.device = device
        self.tables = {table.name: table for table in tables}
        self.pool = pool
        self.tick = 0
        self.waiting: dict[str, list[Record]] = {}
        self.anchors: dict[str, torch.Tensor] = {}
        self.staged: Sequence[Any] = ()
        self.prefetching = False
        self.observers = Observers()
        self.planner = Planner(path)
        self._released: deque[tuple[int, WorkingSet]] = deque()
        self._deduper = Deduper()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise ConfigError(
            "a store cannot be copied to another process; let DataLoader workers return ids, and "
            "look rows up in the process that opened the store"
        )

    # -- batches ---------------------------------------------------------------------------------

    def stage(self, requests: Mapping[str, Sequence[Keys]]) -> WorkingSet:
        """Make the rows of a batch resident and pinned: a `WorkingSet` that nobody holds yet.

        requests: for each table the keys of one batch, (N,) uint64 each, duplicates welcome.
        Raises: KeyRangeError; WorkingSetError and DiskFullError before anything has changed.
        """
        return self.stage_asked(self.ask(requests))

    def ask(self, requests: Mapping[str, Sequence[Keys]]) -> Mapping[str, Asked]:
        """The unique keys of a batch by table, to be staged later. Raises: KeyRangeError."""
        with self.planner:
            return {t: Asked.of(self._spec(t), k, self._deduper) for t, k in requests.items()}

    @abstractmethod
    def stage_asked(
        self, asked: Mapping[str, Asked], *, ahead: int = 0, beside: bool = False
    ) -> WorkingSet:
        """`stage` what `ask` returned, announced to ``coming`` or not.

        ahead: the most steps that come before the batch is used. With more than 0 it has to be
        `enter`ed then. beside: another thread trains meanwhile.
        """

    def enter(self, working_set: WorkingSet) -> None:  # noqa: B027 - most have nothing to do
        """A batch that was staged ahead is about to be used; in the loop's thread."""

    def rows_of(self, working_set: WorkingSet, table: str) -> tuple[torch.Tensor, Positions]:
        """Where a batch's rows of one table are, for one use: a tensor, (C, D) float32 on
        ``device``, and the place of each there, (U,) int64. In the loop's thread.
        """
        embeddings: torch.Tensor = self.stacks[table].top.array.embeddings
        return embeddings, working_set.parts[table].positions

    def settle(self, tick: int | None = None) -> None:
        """Unpin what was released up to and including ``tick`` (None: all of it).

        The prefetch stage gives the tick, so that what can be evicted depends on batches, not time.
        """
        with self.planner:
            while self._released and (tick is None or self._released[0][0] <= tick):
                self._unpin(self._released.popleft()[1].parts)

    def begin_prefetch(self, *, beside: bool) -> None:
        """A prefetch loop begins, and will `end_prefetch`. beside: with a thread of its own."""
        self.settle()
        self.prefetching = True

    def end_prefetch(self) -> None:
        """A prefetch loop is over: `settle`, unless the store was closed or has stopped."""
        self.prefetching = False
        if not self.planner.closed and self.planner.failure is None:
            with self.planner:
                self.settle()
                self.coming.end()

    @property
    def crowded(self) -> bool:
        """True when a cache should shrink soon and pins stand in the way."""
        return False

    # -- steps -----------------------------------------------------------------------------------

    @property
    def due(self) -> list[str]:
        """Tables that a step has gradients for."""
        return [name for name in self.tables if self.waiting.get(name)]

    @abstractmethod
    def stepping(self) -> AbstractContextManager[None]:
        """While a step changes rows: no cut falls inside, and at its end durability is kept.

        Raises: DiskFullError at the end, also that of an earlier cut.
        """

    @abstractmethod
    def apply(
        self, table: str, records: Sequence[Record], *, lr: float, step: int, scale: float
    ) -> int:
        """One step's gradients of a table, merged and applied: rows skipped as not finite.

        lr, step: of this step, step 1 the first. scale: multiplies all gradients. The rows must be
        pinned by the records' holds.
        """

    def squares(self, table: str, record: Record | None) -> float:
        """The sum of squares of a table's gradient, of all workers together where they step
        together. record: this worker's, merged; None where it has none.
        """
        return 0.0 if record is None else float(record.gradient.double().square().sum())

    def most(self, count: int) -> int:
        """The largest that a worker says, where they step together."""
        return count

    def await_steps(self) -> None:  # noqa: B027 - most have nothing to wait for
        """Return when all steps that were made are applied, wherever the rows are."""

    # -- rows ------------------------------------------------------------------------------------

    def read(self, table: str, keys: torch.Tensor | NDArray[Any]) -> Floats:
        """Copy of the embeddings of ``keys``: (N, D) float32; an unseen key gets its initial value.

        keys: (N,) integers, duplicates welcome. Nothing is inserted, counted, moved or evicted.
        Raises: KeyRangeError; CorruptError.
        """
        wanted = self._keys(table, keys)
        found = np.empty((len(wanted), self.tables[table].dim), np.float32)
        for number in range(self.most(-(-len(wanted) // _READ))):
            piece = slice(number * _READ, (number + 1) * _READ)
            with self.planner:
                unique, inverse, _ = self._deduper.dedupe(wanted[piece])
            found[piece] = self._peek(table, unique)[inverse]
        return found

    @abstractmethod
    def write(
        self, table: str, keys: torch.Tensor | NDArray[Any], embeddings: torch.Tensor | Floats
    ) -> None:
        """Set embeddings and reset their optimizer state; of a key given twice the last counts.

        keys: (N,) integers. embeddings: (N, D) floats. Raises: KeyRangeError; ConfigError.
        """

    @abstractmethod
    def delete(self, table: str, keys: torch.Tensor | NDArray[Any]) -> None:
        """Forget rows for good, wherever they are; no crash and no `resume` brings them back."""

    @abstractmethod
    def digest(self) -> int:
        """Sum mod 2**64 over all rows of all tables of a 64-bit hash: see `ps.digest`."""

    # -- durability, figures and the end ---------------------------------------------------------

    @abstractmethod
    def checkpoint(self, step: int, state: Mapping[str, Any] | None = None) -> None:
        """Make everything up to now durable under ``step``, with the caller's state.

        state: a tree of dicts, lists, JSON values and tensors. Call it between steps, in every
        worker. When it returns, no crash can undo it. Raises: DiskFullError.
        """

    @property
    @abstractmethod
    def wants_checkpoint(self) -> bool:
        """True when a disk is nearly full, and a checkpoint would let old blocks go."""

    @property
    @abstractmethod
    def stored_rows(self) -> int:
        """Rows that are on disk, of all tables."""

    @property
    @abstractmethod
    def checkpoints(self) -> list[int]:
        """Steps of the kept checkpoints, oldest first."""

    @abstractmethod
    def resume(self) -> tuple[int, dict[str, Any]]:
        """Go back to the newest checkpoint: (its step, the caller's state then)."""

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Counters and bytes of every tier as JSON values; counters only grow."""

    @abstractmethod
    def tiers(self) -> dict[str, Any]:
        """The tiers of this process by table, as in `stats`, without waiting for anything: counters
        may be of different moments of one batch.
        """

    @abstractmethod
    def close(self) -> None:
        """Make everything durable, then let go of memory, threads and files. Twice is fine."""

    # -- private ---------------------------------------------------------------------------------

    @abstractmethod
    def _peek(self, table: str, keys: Keys) -> Floats:
        """(U, D) float32 copies of the embeddings of unique keys."""

    def _release(self, working_set: WorkingSet) -> None:
        # From any thread, even while garbage is collected: an append takes no lock.
        self._released.append((self.tick, working_set))

    def _unpin(self, parts: Mapping[str, Part]) -> None:
        for name, part in parts.items():
            self.stacks[name].unpin(part.positions)

    def _spec(self, table: str) -> Table:
        if table not in self.tables:
            raise ConfigError(f"table {table!r}: expected one of {sorted(self.tables)}")
        return self.tables[table]

    def _new_rows(
        self,
        table: str,
        keys: torch.Tensor | NDArray[Any],
        embeddings: torch.Tensor | Floats,
        step: int,
    ) -> Rows:
        """What `write` is given as whole rows, each key once. Raises: as `write`."""
        given = self._keys(table, keys)
        if isinstance(embeddings, torch.Tensor):
            embeddings = embeddings.detach().to("cpu", torch.float32).numpy()
        return self.tables[table].new_rows(given, np.asarray(embeddings, np.float32), step)

    def _keys(self, table: str, keys: torch.Tensor | NDArray[Any]) -> Keys:
        spec, given = self._spec(table), as_keys(keys)
        check_range(given, spec.rows, table)
        return given
