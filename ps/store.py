"""Store: tables whose rows live on several tiers of one process, over one directory.

The store decides in batch order what is resident (`stage`), reads and writes rows, and makes what
it holds durable (`checkpoint`). The modules that compute with rows are in worker/.

Durability ("checkpoint"): a *cut* is one synced transaction that says which blocks count. A
checkpoint is a cut with the step and the caller's state; the last two are kept. Opening shows the
last cut, `close` makes one, only `resume` goes back to a checkpoint.

Between backward and step the gradients wait here: ``waiting`` has the records of each table, and
``anchors`` the tensors through which autograd reaches them (see `worker.optimizer`).

Threads: one lock, the planner's, guards all tiers; every method takes it. `stage` is called by one
thread at a time (the prefetch thread, or the caller's own).
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ps.digest import rows_digest
from ps.directory import StoreDirectory
from ps.pool import Pool
from ps.record import Record
from ps.stack import Sizes, Stack, divide
from ps.state import pack_state, unpack_state
from ps.table import Table
from ps.workingset import Part, WorkingSet
from storage.errors import ClosedError, ConfigError, StoreError
from storage.keys import BUCKETS, Deduper, as_keys, check_range
from storage.log import BlockLog
from storage.rows import Floats, Keys, Rows

_DEADLINE_SECONDS = 600.0
_KEPT = 2
_PIECE = 1 << 24
_READ = 1 << 14
_CUT = "cut"


class Store:
    """See the module's docstring; made by `ps.open`."""

    def __init__(
        self,
        path: str | Path,
        tables: Sequence[Table] | None,
        *,
        ram: int,
        hbm: int | None,
        disk: int | None,
        device: torch.device,
        threads: int,
        policy: str,
    ) -> None:
        self.device = device
        self.pool = Pool(threads)
        self.tick = 0
        self.waiting: dict[str, list[Record]] = {}
        self.anchors: dict[str, torch.Tensor] = {}
        self.staged: Sequence[Any] = ()
        self.prefetching = False
        self._process = os.getpid()
        self._released: deque[tuple[int, WorkingSet]] = deque()
        self._lock = threading.RLock()
        self._deduper = Deduper()
        self._closed = False
        self._broken: BaseException | None = None
        self._directory = StoreDirectory(path, tables)
        self.path = self._directory.path
        self.tables = {table.name: table for table in self._directory.tables}
        try:
            self._log = BlockLog(self.path, list(self.tables), disk_bytes=disk)
        except BaseException:
            self._directory.close()
            raise
        try:
            self._truncate(self._cut())
            self._sizes = _sizes(self._directory.tables, ram, hbm)
            self._policy = policy
            self.stacks = self._make_stacks()
        except BaseException:
            self._abandon()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        Raises: KeyRangeError; WorkingSetError before anything has changed.
        """
        with self._planner():
            asked = {name: self._unique(name, keys) for name, keys in requests.items()}
            parts: dict[str, Part] = {}
            try:
                for name, (unique, inverses, counts) in asked.items():
                    positions = self.stacks[name].hierarchy.pin(unique, counts)
                    parts[name] = Part(unique, positions, counts, inverses)
            except BaseException as error:
                self._unpin(parts)
                self._note(error)
                raise
            return WorkingSet(parts, self._release)

    def settle(self, tick: int | None = None) -> None:
        """Unpin what was released up to and including ``tick`` (None: all of it).

        The prefetch stage gives the tick, so that what can be evicted depends on batches, not time.
        """
        with self._planner():
            while self._released and (tick is None or self._released[0][0] <= tick):
                self._unpin(self._released.popleft()[1].parts)

    def settle_if_open(self) -> None:
        """`settle`, unless the store was closed or stopped meanwhile."""
        if not self._closed and self._broken is None:
            self.settle()

    @property
    def crowded(self) -> bool:
        """True when a cache should shrink soon and pins stand in the way."""
        with self._planner():
            return any(s.hierarchy.wants_room and s.top.pinned for s in self.stacks.values())

    # -- rows ------------------------------------------------------------------------------------

    def read(self, table: str, keys: torch.Tensor | NDArray[Any]) -> Floats:
        """Copy of the embeddings of ``keys``: (N, D) float32; an unseen key gets its initial value.

        keys: (N,) integers, duplicates welcome. Nothing is inserted, counted, moved or evicted.
        Raises: KeyRangeError; CorruptError.
        """
        wanted = self._keys(table, keys)
        found = np.empty((len(wanted), self.tables[table].dim), np.float32)
        for start in range(0, len(wanted), _READ):
            piece = slice(start, start + _READ)
            found[piece] = self._peek(table, wanted[piece])
        return found

    def write(
        self, table: str, keys: torch.Tensor | NDArray[Any], embeddings: torch.Tensor | Floats
    ) -> None:
        """Set embeddings and reset their optimizer state; of a key given twice the last counts.

        keys: (N,) integers. embeddings: (N, D) float32. Raises: KeyRangeError; ConfigError.
        """
        spec, given = self._spec(table), self._keys(table, keys)
        values = np.asarray(torch.as_tensor(embeddings).detach().cpu(), np.float32)
        if values.shape != (len(given), spec.dim):
            raise ConfigError(
                f"write: table {table!r} expected embeddings of shape ({len(given)}, {spec.dim}), "
                f"got {values.shape}"
            )
        unique, last = np.unique(given[::-1], return_index=True)
        rows = Rows.empty(len(unique), spec.width)
        rows.keys[:] = unique
        rows.values[:, : spec.dim] = values[::-1][last]
        rows.values[:, spec.dim :] = spec.optimizer.initial_state
        rows.dirty[:] = True
        self.put(table, rows)

    def put(self, table: str, rows: Rows) -> None:
        """Set whole rows, optimizer state included; those marked dirty become part of the table."""
        with self._planner():
            self.settle()
            self._changing(lambda: self.stacks[table].hierarchy.write(rows))

    def delete(self, table: str, keys: torch.Tensor | NDArray[Any]) -> None:
        """Forget rows on every tier; unknown keys are fine. A key seen again starts anew.

        Raises: StoreError when a row is part of a batch in flight.
        """
        unique = np.unique(self._keys(table, keys))
        with self._planner():
            self.settle()
            stack = self.stacks[table]
            positions = stack.top.place(unique)
            if not stack.top.unpinned(positions[positions >= 0]).all():
                raise StoreError(
                    f"delete: table {table!r}: some keys belong to a batch in flight; "
                    f"finish the step (or the prefetch loop) first"
                )
            self._changing(lambda: stack.hierarchy.delete(unique))

    def rows(self, table: str) -> Iterator[Rows]:
        """All rows that were ever changed and are not deleted, in pieces, by rising mixed key.

        Writes what is dirty to the log first. The store must not change while this goes on.
        """
        self._spec(table)
        with self._planner():
            self._changing(self.stacks[table].hierarchy.flush)
            ssd = self.stacks[table].ssd
            for bucket in range(BUCKETS):
                keys = ssd.segment(bucket)
                if len(keys):
                    yield ssd.peek(keys)[0]

    def digest(self) -> int:
        """Sum mod 2**64 over all rows of all tables of a 64-bit hash: see `ps.digest`."""
        total = sum(rows_digest(name, rows) for name in self.tables for rows in self.rows(name))
        return total % 2**64

    # -- durability ------------------------------------------------------------------------------

    def checkpoint(self, step: int, state: Mapping[str, Any] | None = None) -> None:
        """Make everything up to now durable under ``step``, with the caller's state.

        state: a tree of dicts, lists, JSON values and tensors. Call it between steps. When it
        returns, no crash can undo it; the one before last is given up.
        """
        tree, tensors = pack_state(state or {})
        with self._planner():
            self._flush()
            number = 1 + max(self._numbers(), default=0)
            pieces = range(0, len(tensors), _PIECE)
            facts: dict[str, bytes | None] = {
                f"state/{number:012d}/{i:06d}": tensors[start : start + _PIECE]
                for i, start in enumerate(pieces)
            }
            manifest = {"step": step, "blocks": self._ends(), "state": tree}
            facts[f"checkpoint/{number:012d}"] = json.dumps(manifest).encode()
            facts[_CUT] = json.dumps({"blocks": self._ends()}).encode()
            for old in self._numbers()[: 1 - _KEPT]:
                facts |= dict.fromkeys(self._facts_of(old))
            self._changing(lambda: self._log.commit(facts))

    @property
    def checkpoints(self) -> list[int]:
        """Steps of the kept checkpoints, oldest first."""
        with self._planner():
            return [self._manifest(number)["step"] for number in self._numbers()]

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Go back to the newest checkpoint: (its step, the caller's state then).

        What came after it is gone for good. Raises: StoreError when there is no checkpoint, or a
        batch is in flight.
        """
        with self._planner():
            self.settle()
            if any(stack.top.pinned for stack in self.stacks.values()):
                raise StoreError("resume: a batch is in flight; end the loop and drop its outputs")
            numbers = self._numbers()
            if not numbers:
                raise StoreError(
                    f"{self.path}: expected a checkpoint to resume from, found none; "
                    f"start without resuming"
                )
            manifest = self._manifest(numbers[-1])
            self._log.commit({_CUT: json.dumps({"blocks": manifest["blocks"]}).encode()})
            self._rewind(manifest["blocks"])
            names = self._log.names(f"state/{numbers[-1]:012d}/")
            tensors = b"".join(self._log.fact(name) or b"" for name in names)
            return int(manifest["step"]), unpack_state(manifest["state"], tensors)

    # -- figures and the end ---------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counters and bytes of every tier as JSON values; counters only grow."""
        with self._planner():
            return {
                "tables": {name: stack.report() for name, stack in self.stacks.items()},
                "disk_bytes": {"file": self._log.file_bytes, "total": self._log.disk_bytes},
                "checkpoints": [self._manifest(n)["step"] for n in self._numbers()],
            }

    def check(self) -> list[str]:
        """Read everything and verify every invariant: what is broken, one line each."""
        with self._planner():
            return [line for s in self.stacks.values() for line in s.hierarchy.check()]

    def close(self) -> None:
        """Make a cut of everything, then let go of memory, threads and files. Twice is fine.

        After a failure (a full disk, say) no cut is made: the last one stands.
        """
        with self._lock:
            if self._closed:
                return
            try:
                if self._broken is None:
                    self._flush()
                    self._log.commit({_CUT: json.dumps({"blocks": self._ends()}).encode()})
            finally:
                self._abandon()

    # -- private ---------------------------------------------------------------------------------

    @contextmanager
    def _planner(self) -> Iterator[None]:
        """Be the one owner of all tiers."""
        if not self._lock.acquire(timeout=_DEADLINE_SECONDS):
            raise StoreError(
                f"{self.path}: another thread has kept the store for {_DEADLINE_SECONDS:.0f} s"
            )
        try:
            if self._closed:
                raise ClosedError(f"{self.path}: the store is closed")
            if os.getpid() != self._process:
                raise StoreError(
                    f"{self.path}: process {self._process} opened this store, {os.getpid()} is "
                    f"its fork (a DataLoader worker?); look rows up in the parent"
                )
            if self._broken is not None:
                raise StoreError(
                    f"{self.path}: the store stopped after an error ({self._broken}); open it "
                    f"again and resume()"
                ) from self._broken
            yield
        finally:
            self._lock.release()

    def _note(self, error: BaseException) -> None:
        """After a failed write memory and disk may differ: refuse everything but closing."""
        if isinstance(error, StoreError | OSError):
            self._broken = error

    def _changing(self, action: Any) -> None:
        try:
            action()
        except BaseException as error:
            self._note(error)
            raise

    def _release(self, working_set: WorkingSet) -> None:
        # From any thread, even while garbage is collected: an append takes no lock.
        self._released.append((self.tick, working_set))

    def _unpin(self, parts: Mapping[str, Part]) -> None:
        for name, part in parts.items():
            self.stacks[name].hierarchy.unpin(part.positions)

    def _unique(self, name: str, requests: Sequence[Keys]) -> tuple[Keys, list[NDArray], Any]:
        spec = self._spec(name)
        keys = requests[0] if len(requests) == 1 else np.concatenate(requests)
        check_range(keys, spec.rows, name)
        unique, inverse, counts = self._deduper.dedupe(keys)
        edges = np.cumsum([len(request) for request in requests])[:-1]
        return unique, np.split(inverse, edges), counts

    def _spec(self, table: str) -> Table:
        if table not in self.tables:
            raise ConfigError(f"table {table!r}: expected one of {sorted(self.tables)}")
        return self.tables[table]

    def _keys(self, table: str, keys: torch.Tensor | NDArray[Any]) -> Keys:
        spec, given = self._spec(table), as_keys(keys)
        check_range(given, spec.rows, table)
        return given

    def _peek(self, table: str, keys: Keys) -> Floats:
        with self._planner():
            unique, inverse, _ = self._deduper.dedupe(keys)
            rows, missing = self.stacks[table].hierarchy.peek(unique)
        dim = self.tables[table].dim
        values = rows.values[:, :dim]
        values[missing] = self.tables[table].fresh(unique[missing])[:, :dim]
        return values[inverse]

    def _flush(self) -> None:
        for stack in self.stacks.values():
            self._changing(stack.hierarchy.flush)

    def _ends(self) -> dict[str, int]:
        return {name: stack.ssd.end for name, stack in self.stacks.items()}

    def _cut(self) -> dict[str, int]:
        cut = self._log.fact(_CUT)
        return {} if cut is None else dict(json.loads(cut)["blocks"])

    def _truncate(self, ends: Mapping[str, int]) -> None:
        for name in self.tables:
            self._log.truncate(name, ends.get(name, 0))

    def _rewind(self, ends: Mapping[str, int]) -> None:
        for name, stack in self.stacks.items():
            stack.ssd.rewind(ends[name])
            del stack
        self.stacks = {}  # first, so that old and new caches never exist together
        self.stacks = self._make_stacks()

    def _make_stacks(self) -> dict[str, Stack]:
        return {
            name: Stack(
                table, self._log, self._sizes[name], device=self.device, policy=self._policy
            )
            for name, table in self.tables.items()
        }

    def _numbers(self) -> list[int]:
        return [int(name.split("/")[1]) for name in self._log.names("checkpoint/")]

    def _facts_of(self, number: int) -> list[str]:
        return [f"checkpoint/{number:012d}", *self._log.names(f"state/{number:012d}/")]

    def _manifest(self, number: int) -> dict[str, Any]:
        return dict(json.loads(self._log.fact(f"checkpoint/{number:012d}") or b"{}"))

    def _abandon(self) -> None:
        self._closed = True
        self.pool.close()
        self._log.close()
        self._directory.close()


def _sizes(tables: Sequence[Table], ram: int, hbm: int | None) -> dict[str, Sizes]:
    in_ram = divide(ram, tables)
    in_hbm = None if hbm is None else divide(hbm, tables)
    return {
        table.name: Sizes(in_ram[table.name], None if in_hbm is None else in_hbm[table.name])
        for table in tables
    }
