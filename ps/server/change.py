"""Change: what a client wants to have changed: gradients, whole rows, or deletions.

Read from a message that nobody vouches for: table, counts, lengths, types, ranges, and that keys
are unique and belong here, all before memory is taken for anything. The same messages lie in the
redo log of a shard with durability "strict".

Threads: reading is pure and releases the GIL in its loops; `apply` is the owner's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np

from ps.partition import Partition
from ps.record import apply_condensed
from ps.store import Store
from ps.table import Table
from ps.wire.frame import Frame, array_of, unpacker
from ps.wire.terrace_pb2 import DeleteRequest, PushRequest, WriteRequest
from ps.workingset import Asked
from storage.errors import ConfigError, RefusedError, TerraceError
from storage.keys import check_range, mix
from storage.rows import Counts, Floats, Keys, Positions, Rows

MOST_ROWS = 1 << 21
"""Of one request; its keys then fill the message."""

_PIECES = 4
_EMPTY = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class Owned:
    """What a shard has: its tables, and the buckets of ``shard`` in the partition."""

    tables: Mapping[str, Table]
    partition: Partition
    shard: int

    def table(self, name: str) -> Table:
        """The table of this name. Raises: RefusedError."""
        if name not in self.tables:
            raise RefusedError(f"table {name[:80]!r}: expected one of {sorted(self.tables)}")
        return self.tables[name]

    def keys(self, table: Table, data: Any, rows: int) -> Keys:
        """The keys of a request, a view. Raises: RefusedError; KeyRangeError."""
        if rows > MOST_ROWS:
            raise RefusedError(f"rows: expected {MOST_ROWS} at most in one request, got {rows}")
        keys: Keys = array_of(data, np.uint64, rows, name="keys")
        check_range(keys, table.rows, table.name)
        if (wrong := self.partition.misplaced(keys, self.shard)) >= 0:
            raise RefusedError(
                f"keys: expected keys of shard {self.shard} of {self.partition.shards}, got "
                f"{int(keys[wrong])} at {wrong}; connect to the shards in their order"
            )
        if (twice := _repeated(keys)) >= 0:
            raise RefusedError(f"keys: expected each once, got {int(keys[twice])} again at {twice}")
        return keys


class Change(ABC):
    """One change of one table. table: None when it has no rows. clock: of its client."""

    table: str | None
    rows: int = 0
    clock: int = 0

    @contextmanager
    def prepared(self, store: Store, logged_bytes: int) -> Iterator[None]:
        """Inside there is room for it, on the disk beside so much of the redo log, and in RAM.

        Raises: DiskFullError, WorkingSetError, before anything has changed.
        """
        rows = {} if self.table is None else {self.table: self.rows}
        with store.prepared(rows, logged_bytes):
            if self.table is not None:
                with store.planner, store.planner.changing():
                    store.settle()
                    store.stacks[self.table].hierarchy.make_room(self.rows)
            yield

    @abstractmethod
    def apply(self, store: Store) -> int:
        """Make the change, whole: rows that were left out. Raises: DiskFullError, at first;
        RuntimeError, which stops the store, when a part of it was made and the rest cannot be.
        """


@dataclass(frozen=True)
class Push(Change):
    """Gradients. keys: (U,) uint64; gradients: (U, D) float32; uses: (U,) int32."""

    table: str | None
    keys: Keys
    gradients: Floats
    uses: Counts
    lr: float
    step: int
    scale: float
    clock: int

    @property
    def rows(self) -> int:  # type: ignore[override]
        """U."""
        return len(self.keys)

    def apply(self, store: Store) -> int:
        """See `Change.apply`."""
        if self.table is None:
            return 0
        stack, skipped = store.stacks[self.table], 0
        rule = {"lr": self.lr, "step": self.step, "scale": self.scale}
        begun = False
        try:
            # Closed at once whatever comes: it may have the planner's lock, and what keeps an error
            # would keep it too.
            with closing(resident(store, self.table, self.keys)) as pieces:
                for piece, positions in pieces:
                    begun = True
                    args = (positions, self.gradients[piece], self.uses[piece], store.pool)
                    skipped += apply_condensed(stack, *args, **rule)  # type: ignore[arg-type]
        except TerraceError as error:
            if begun:
                raise _halved(error) from error
            raise
        return skipped


@dataclass(frozen=True)
class Write(Change):
    """Whole rows, or embeddings whose optimizer state starts anew (``steps`` is None)."""

    table: str
    keys: Keys
    values: Floats
    steps: Any

    @property
    def rows(self) -> int:  # type: ignore[override]
        """U."""
        return len(self.keys)

    def apply(self, store: Store) -> int:
        """See `Change.apply`."""
        if self.steps is None:
            step = store.stacks[self.table].step
            rows = store.tables[self.table].new_rows(self.keys, self.values, step)
        else:
            dirty = np.ones(len(self.keys), np.bool_)
            rows = Rows(self.keys.copy(), self.values.copy(), self.steps.copy(), dirty)
        try:
            store.put(self.table, rows)
        except TerraceError as error:
            # Room was made for all of it beforehand, so a part may have been written.
            raise _halved(error) from error
        return 0


@dataclass(frozen=True)
class Delete(Change):
    """Keys to be forgotten."""

    table: str
    keys: Keys

    def apply(self, store: Store) -> int:
        """See `Change.apply`."""
        store.delete(self.table, self.keys)
        return 0


def resident(
    store: Store, table: str, keys: Keys
) -> Generator[tuple[slice, Positions], None, None]:
    """Rows that stay where they are until the next is asked for: which of the keys, and positions.

    To be closed by the thread that began it, if it does not go on to the end.

    All at once where all are in the cache, under the planner's lock; else as many as a quarter of
    the cache, pinned.
    """
    stack = store.stacks[table]
    with store.planner:
        positions = stack.top.place(keys)
        if not len(keys) or positions.min() >= 0:
            # Nothing has to be pinned: half of the time of making them resident.
            stack.top.use(positions, np.ones(len(keys), np.int32))
            yield slice(0, len(keys)), positions
            if stack.doorkeeper is not None:
                stack.top.demote_fresh(positions)
            return
    start = 0
    while start < len(keys):
        # Asked each time: the cache shrinks while the index grows.
        most = max(1, stack.top.limit // _PIECES)
        piece = slice(start, min(start + most, len(keys)))
        start, some = piece.stop, keys[piece]
        working_set = store.stage_asked({table: Asked(some, np.ones(len(some), np.int32), ())})
        hold = working_set.hold()
        try:
            yield piece, working_set.parts[table].positions
        finally:
            hold.drop()
        store.settle()


def _halved(error: TerraceError) -> RuntimeError:
    return RuntimeError(f"a change was cut in two ({error})")


def read_push(frame: Frame[Any], owned: Owned) -> Push:
    """What a `PushRequest` asks for. Raises: RefusedError; ConfigError."""
    message = frame.message
    if not message.table:
        if message.rows or message.keys or message.uses or len(frame.array):
            raise RefusedError("push: expected no rows where no table is named, got some")
        nothing = (_EMPTY, np.zeros((0, 1), np.float32), np.zeros(0, np.int32))
        return Push(None, *nothing, 0.0, 0, 1.0, message.clock)
    table = owned.table(message.table)
    gradients = array_of(frame.array, np.float32, message.rows, table.dim, name="gradients")
    keys = owned.keys(table, message.keys, message.rows)
    uses = np.ones(message.rows, np.int32)
    if table.admission is not None:
        uses = array_of(message.uses, np.int32, message.rows, name="uses")
        if len(uses) and uses.min() < 0:
            raise RefusedError("uses: expected 0 or more each, got less")
    elif message.uses:
        raise RefusedError(f"uses: table {table.name!r} admits all keys and expected none")
    if not 1 <= message.step < 2**32:
        raise RefusedError(f"step: expected 1 to 2**32 - 1, got {message.step}")
    if not np.isfinite(message.scale):
        raise RefusedError(f"scale: expected a finite number, got {message.scale}")
    table.optimizer.hyper(lr=message.lr, step=message.step)
    rule = (message.lr, message.step, message.scale, message.clock)
    return Push(table.name, keys, gradients, uses, *rule)


def read_write(frame: Frame[Any], owned: Owned) -> Write:
    """What a `WriteRequest` asks for. Raises: RefusedError."""
    message = frame.message
    table = owned.table(message.table)
    if message.width not in (table.dim, table.width):
        raise RefusedError(
            f"write: table {table.name!r} has rows of {table.dim} floats, {table.width} with "
            f"state; expected one of these, got {message.width}"
        )
    values = array_of(frame.array, np.float32, message.rows, message.width, name="values")
    keys = owned.keys(table, message.keys, message.rows)
    # Without state the two widths are one; then steps say which is meant.
    if message.width == table.dim and not message.steps:
        return Write(table.name, keys, values, None)
    steps = array_of(message.steps, np.uint32, message.rows, name="steps")
    return Write(table.name, keys, values, steps)


def read_delete(frame: Frame[Any], owned: Owned) -> Delete:
    """What a `DeleteRequest` asks for. Raises: RefusedError."""
    table = owned.table(frame.message.table)
    return Delete(table.name, owned.keys(table, frame.array, frame.message.rows))


KINDS: Mapping[str, tuple[Any, Any]] = {
    "Push": (unpacker(PushRequest), read_push),
    "Write": (unpacker(WriteRequest), read_write),
    "Delete": (unpacker(DeleteRequest), read_delete),
}
"""By method: what reads its messages, and what those ask for."""

_TAGS = {kind[:1].encode(): kind for kind in KINDS}


def record_of(kind: str, frame: Frame[Any]) -> Sequence[bytes]:
    """A change as the redo log has it."""
    return (kind[:1].encode(), frame.raw)


def read_record(record: bytes, owned: Owned) -> tuple[Frame[Any], Change]:
    """The message and the change that `record_of` made a record of. Raises: RefusedError."""
    kind = _TAGS.get(record[:1])
    if kind is None:
        raise RefusedError(f"redo log: expected a change, got a record of kind {record[:1]!r}")
    unpack, read = KINDS[kind]
    frame = unpack(record[1:])
    try:
        return frame, read(frame, owned)
    except ConfigError as error:
        raise RefusedError(str(error)) from error


@nb.njit(nogil=True, cache=True)
def _repeated(keys: Any) -> Any:
    """Index of the first key that was there before, -1 when all are different."""
    size = 16
    while size < 2 * keys.shape[0]:
        size *= 2
    mask = np.uint64(size - 1)
    slots = np.zeros(size, np.uint32)
    for i in range(keys.shape[0]):
        slot = mix(keys[i]) & mask
        while slots[slot] != 0:
            if keys[np.int64(slots[slot]) - 1] == keys[i]:
                return i
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = np.uint32(i + 1)
    return -1
