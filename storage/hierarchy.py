"""Hierarchy: a cache over a tier below, which may be a hierarchy itself.

Two uses, one class. As the top of a stack its `pin` makes a batch's working set resident, so that
the step works in the cache's arrays and nothing misses inside it. Below a GPU cache it answers
`lookup` and `write` like any other tier.

Invariant: a dirty row is in the cache or has been written below, at every moment. Everything is
brought in pieces that a fixed amount of staging memory holds, and nothing changes before it is
known that the whole working set fits.

Memory: cache, index of the SSD tier, write buffers and staging share one budget. The index grows
with the rows on the SSD, so the cache shrinks ahead of it (`make_room`), and only while nothing is
pinned, since a pinned row cannot move.

Threads: one owner, the store's planner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from storage.address import ENTRY_BYTES
from storage.block import BlockShape
from storage.budget import Budget, show_size
from storage.cache import CacheTier, overhead_bytes
from storage.errors import WorkingSetError
from storage.rows import Counts, Floats, Keys, Positions, Rows
from storage.stats import FirstSeen

_SHRINK_PARTS = 32
_SHED = 0.8
_COPIES = 4


class Lowest(Protocol):
    """What a hierarchy asks of the tier below beyond the contract of a tier."""

    width: int

    @property
    def memory_bytes(self) -> int:
        """RAM it holds now."""
        ...

    def growth_bound(self, rows: int) -> int:
        """RAM that writing this many rows can add at most."""
        ...

    def lookup(self, keys: Keys, counts: Counts) -> tuple[Rows, NDArray[np.bool_]]: ...  # noqa: D102
    def peek(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]: ...  # noqa: D102
    def write(self, rows: Rows) -> None: ...  # noqa: D102
    def delete(self, keys: Keys) -> None: ...  # noqa: D102
    def flush(self) -> None: ...  # noqa: D102
    def check(self) -> list[str]: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Hierarchy:
    """``top`` over ``below``; see the module's docstring.

    budget: of the RAM that top and below share, or None when ``below`` keeps its own.
    shape: of the rows and of the blocks they end in.
    fresh: the initial embeddings and state of keys that no tier has: (U,) uint64 -> (U, W) float32.
    staging_bytes: bound of the copies made while rows move.
    """

    def __init__(
        self,
        top: CacheTier,
        below: Lowest,
        *,
        budget: Budget | None,
        shape: BlockShape,
        fresh: Callable[[Keys], Floats],
        staging_bytes: int,
    ) -> None:
        self.name = top.name
        self.width = top.width
        self.top = top
        self.below = below
        self.first_seen = FirstSeen()
        self._budget = budget
        self._shape = shape
        self._fresh = fresh
        self._piece = max(64, staging_bytes // (_COPIES * 4 * top.width))
        self._account()

    # -- the top of a stack ---------------------------------------------------------------------

    def pin(self, keys: Keys, counts: Counts) -> Positions:
        """Bring a working set into the cache and keep it there: (U,) int64 positions.

        keys: (U,) uint64, unique, in batch order. counts: (U,) int32 uses of each in the batch.
        One `unpin` undoes it. Raises: WorkingSetError before anything has changed when the rows do
        not fit beside what is pinned already.
        """
        self.make_room(len(keys))
        positions = self.top.place(keys)
        self._check_fits(positions)
        self.top.use(positions, counts)
        held = positions >= 0
        self.top.pin(positions[held])
        try:
            for piece in self._pieces(np.flatnonzero(~held)):
                positions[piece] = self._bring(keys[piece], counts[piece])
        except BaseException:
            self.top.unpin(positions[positions >= 0])
            raise
        return positions

    def unpin(self, positions: Positions) -> None:
        """Let go of what one `pin` returned."""
        self.top.unpin(positions)

    @property
    def wants_room(self) -> bool:
        """True when the cache should shrink soon, which needs a moment without pins.

        Room is kept for an index entry of every cached row, so that all of them can be written
        below (by a checkpoint, with rows pinned) without exceeding the budget.
        """
        if self._budget is None:
            return False
        entries = len(self.top) * ENTRY_BYTES
        return self._budget.free < entries + self._budget.total // (4 * _SHRINK_PARTS)

    def make_room(self, rows: int) -> None:
        """Shrink the cache until writing ``rows`` rows below cannot exceed the budget.

        Raises: WorkingSetError when that would leave too little, or rows are pinned.
        """
        if self._budget is None:
            return
        need = self.below.growth_bound(rows)
        enough = self._budget.free >= need
        if enough and (self.top.pinned or not self.wants_room):
            return
        step = self._budget.total // _SHRINK_PARTS
        surplus = max(step, need + step - self._budget.free)
        limit = self.top.limit - surplus // (self.top.array.bytes_per_position + ENTRY_BYTES)
        if enough and limit < 2 * rows:
            return
        if self.top.pinned or limit < 1:
            raise self._too_small(rows)
        while len(self.top) > limit:
            self._write_back(self.top.evict(min(self._piece, len(self.top) - limit)))
        self.top.shrink(limit)
        self._account()
        if limit < _SHED * len(self.top.steps) and self._budget.free > overhead_bytes(limit):
            self.top.shed()
            self._account()

    # -- the contract of a tier -----------------------------------------------------------------

    def lookup(self, keys: Keys, counts: Counts) -> tuple[Rows, NDArray[np.bool_]]:
        """Hand rows to the tier above; what this cache lacks comes from below, past it."""
        rows, missing = self.top.lookup(keys, counts)
        return self._complete(rows, missing, lambda k, m: self.below.lookup(k, counts[m]))

    def peek(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """Copy rows out; nothing is counted or moved."""
        rows, missing = self.top.peek(keys)
        return self._complete(rows, missing, lambda k, m: self.below.peek(k))

    def write(self, rows: Rows) -> None:
        """Take rows back from above into the cache; what they push out goes below."""
        for piece in self._pieces(np.arange(len(rows))):
            self.make_room(len(piece))
            part = rows.take(piece)
            positions, evicted = self.top.admit(part)
            self._write_back(evicted)
            self._write_back(part.take(positions < 0))
        self._account()

    def delete(self, keys: Keys) -> None:
        """Forget these keys here and below."""
        self.top.delete(keys)
        self.below.delete(keys)
        self._account()

    def flush(self) -> None:
        """Write all dirty rows below, and round the copy here to what was written.

        With rows narrower than float32 the resident copy is rounded too, so that a run that goes
        on equals one that resumes.
        """
        for piece in self._pieces(self.top.dirty_positions()):
            self.make_room(len(piece))
            rows = self.top.rows_at(piece)
            self._write_back(rows)
            self.top.dirty[piece] = 0
            if self._shape.codec.name != "float32":
                self.top.array.scatter(piece, self._rounded(rows.values))
        self.below.flush()
        self._account()

    def check(self) -> list[str]:
        """Broken invariants of the cache, the tier below, and between them."""
        wrong = self.top.check() + self.below.check()
        if self._budget is not None and self._budget.used > self._budget.total:
            wrong.append(f"{self._budget.what}: {self._budget.used} bytes held, more than given")
        return wrong

    def close(self) -> None:
        """Close the tier below; the cache's memory goes with the object."""
        self.below.close()

    @property
    def memory_bytes(self) -> int:
        """RAM that this hierarchy holds inside its own budget: none of anybody else's."""
        return 0

    def growth_bound(self, rows: int) -> int:
        """Bytes that writing adds to the budget of the tier above: none, there is one here."""
        return 0

    # -- private --------------------------------------------------------------------------------

    def _pieces(self, indices: Positions) -> Iterator[Positions]:
        for start in range(0, len(indices), self._piece):
            yield indices[start : start + self._piece]

    def _check_fits(self, positions: Positions) -> None:
        """Room for what is missing, once what is here already is pinned."""
        held = positions[positions >= 0]
        newly_pinned = int(np.count_nonzero(self.top.unpinned(held)))
        if len(positions) - len(held) > self.top.room - newly_pinned:
            raise self._too_small(len(positions))

    def _too_small(self, rows: int) -> WorkingSetError:
        """The error that says how large the tier would have to be."""
        per_row = self.top.array.bytes_per_position + overhead_bytes(1000) // 1000 + ENTRY_BYTES
        need = (rows + self.top.pinned) * per_row
        if self._budget is not None:
            need += self._budget.used - self._budget.parts["cache"] + self.below.growth_bound(rows)
        need = int(1.25 * need)
        return WorkingSetError(
            f"tier {self.name!r}: one batch needs {rows} rows resident beside {self.top.pinned} in "
            f"use, but the tier holds {self.top.limit}; give it {show_size(need)} or use a smaller "
            f"batch",
            needed_bytes=need,
        )

    def _bring(self, keys: Keys, counts: Counts) -> Positions:
        """Fetch rows that the cache lacks, admit and pin them."""
        rows, missing = self.below.lookup(keys, counts)
        unseen = np.flatnonzero(missing)
        if len(unseen):
            rows.values[unseen] = self._fresh(keys[unseen])
            self.first_seen.keys += len(unseen)
            self.first_seen.accesses += int(counts[unseen].sum())
        # What comes from below is the version below has: clean here, even if it is dirty there.
        rows.dirty[:] = False
        positions, evicted = self.top.admit(rows)
        self._write_back(evicted)
        self.top.pin(positions)
        self._account()
        return positions

    def _write_back(self, evicted: Rows) -> None:
        """Give evicted rows to the tier below; a clean row has its copy there or needs none."""
        below_caches = isinstance(self.below, Hierarchy)
        rows = evicted if below_caches or evicted.dirty.all() else evicted.take(evicted.dirty)
        if len(rows):
            self.below.write(rows)

    def _complete(
        self,
        rows: Rows,
        missing: NDArray[np.bool_],
        ask: Callable[[Keys, Positions], tuple[Rows, NDArray[np.bool_]]],
    ) -> tuple[Rows, NDArray[np.bool_]]:
        """Fill the rows that are missing from below."""
        absent = np.flatnonzero(missing)
        for piece in self._pieces(absent):
            more, still = ask(rows.keys[piece], piece)
            found = ~still
            rows.values[piece[found]] = more.values[found]
            rows.steps[piece[found]] = more.steps[found]
            missing[piece[found]] = False
        return rows, missing

    def _rounded(self, values: Floats) -> Floats:
        codec, dim = self._shape.codec, self._shape.dim
        return codec.decode(codec.encode(values, dim), dim, self._shape.state_width)

    def _account(self) -> None:
        if self._budget is None:
            return
        array = self.top.array.bytes_per_position
        self._budget.hold("cache", self.top.limit * array + self.top.overhead_bytes)
        self._budget.hold("ssd", self.below.memory_bytes)
