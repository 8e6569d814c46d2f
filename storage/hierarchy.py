"""Hierarchy: a cache over a tier below, which may be a hierarchy itself.

Two uses, one class. As the top of a stack its `pin` makes a batch's working set resident, so that
the step works in the cache's arrays and nothing misses inside it. Below a GPU cache it answers
`lookup` and `write` like any other tier.

Invariant: a dirty row is in the cache or has been written below, at every moment; one that cannot
be written below (a full disk) goes back into the cache. Everything is brought in pieces that a
fixed amount of staging memory holds, and nothing changes before it is known that the whole working
set fits.

Memory: cache, index of the SSD tier, write buffers and staging share one budget. The index grows
with the rows on the SSD, so the cache shrinks ahead of it (`make_room`), and only while nothing is
pinned, since a pinned row cannot move. Before anything is written below, the budget has room for
all that the index can grow by then.

While a `LookAhead` is there, rows that coming batches need stay if they can, and when a batch has
to read what coming ones lack too, all is read at once, in the order in which it lies below.

Threads: one owner, the store's planner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from storage.block import BlockShape
from storage.budget import Budget
from storage.cache import CacheTier
from storage.codec import CODECS
from storage.difference import differing
from storage.errors import DiskFullError, WorkingSetError
from storage.lookahead import LookAhead, keep
from storage.rows import Counts, Floats, Keys, Mask, Positions, Rows
from storage.shortage import too_small
from storage.stats import FirstSeen
from storage.tier import Lower
from storage.window import Batches

_SHRINK_PARTS = 32
_COPIES = 4
_LEAST_PIECE = 64
_NOTHING = (np.zeros(0, np.uint64), np.zeros(0, np.uint32))
Ask = Callable[[Keys, Positions], tuple[Rows, Mask]]


class Hierarchy:
    """``top`` over ``below``; see the module's docstring.

    budget: of the RAM that top and below share, or None when ``below`` keeps its own.
    shape: of the rows and of the blocks they end in.
    fresh: the initial embeddings and state of keys that no tier has: (U,) uint64 -> (U, W) float32.
    staging_bytes: bound of the copies made while rows move.
    passes_fresh: clean rows of step 0 go to a cache below like others; False where those can only
    be rows that nobody ever changed.
    """

    def __init__(
        self,
        top: CacheTier,
        below: Lower,
        *,
        budget: Budget | None,
        shape: BlockShape,
        fresh: Callable[[Keys], Floats],
        staging_bytes: int,
        passes_fresh: bool = True,
    ) -> None:
        self.name = top.name
        self.width = top.width
        self.top = top
        self.below = below
        self.stats = top.stats
        self.first_seen = FirstSeen()
        self.ahead: LookAhead | None = None
        self._lent = 0
        self._budget = budget
        self._shape = shape
        self._fresh = fresh
        self._passes_fresh = passes_fresh
        self._piece = max(_LEAST_PIECE, staging_bytes // (_COPIES * 4 * top.width))
        self._account()

    # -- the top of a stack ---------------------------------------------------------------------

    def pin(self, keys: Keys, counts: Counts, *, number: int = 0, most_ahead: int = 0) -> Positions:
        """Bring a working set into the cache and keep it there: (U,) int64 positions.

        keys: (U,) uint64, unique, in batch order. counts: (U,) int32 uses of each in the batch.
        number: of the batch in ``ahead``, 0 for one that is not known there. most_ahead: rows that
        may be read for later batches. One `unpin` undoes it. Raises: WorkingSetError before
        anything has changed when the rows do not fit beside what is pinned already.
        """
        positions = self.top.place(keys)
        self._check_fits(positions)
        limit = self.top.limit
        self.make_room(len(keys), resident=len(keys))
        if self.top.limit < limit:  # rows have left or moved
            positions = self.top.place(keys)
        early = self.top.use(positions, counts)
        self.below.stats.count(early[early], counts[early])
        held = positions >= 0
        self.top.pin(positions[held])
        try:
            self._fill(keys, counts, positions, self._coming(number, keys, positions, most_ahead))
        except BaseException:
            self.top.unpin(positions[positions >= 0])
            raise
        if self.ahead is not None and number:
            keep(self.top, positions, self.ahead.nexts(number, len(keys)))
        return positions

    def unpin(self, positions: Positions) -> None:
        """Let go of what one `pin` returned."""
        self.top.unpin(positions)

    @property
    def wants_room(self) -> bool:
        """True when the cache should shrink soon, which needs a moment without pins.

        Room is kept for the index entries of all cached rows, so that they can be written below (by
        a checkpoint, with rows pinned) without exceeding the budget.
        """
        if self._budget is None:
            return False
        return self._budget.free < self._reserve

    @property
    def _reserve(self) -> int:
        assert self._budget is not None
        return self.below.growth_bound(len(self.top)) + self._budget.total // (4 * _SHRINK_PARTS)

    def make_room(self, rows: int, *, resident: int = 1) -> None:
        """Shrink the cache until writing ``rows`` rows below cannot exceed the budget.

        Raises: WorkingSetError, before anything has changed, when that would leave room for fewer
        than ``resident`` rows here, or when rows are pinned.
        """
        self._shrink(self._limit_for(rows, max(1, resident)), rows)

    def lend(self, size: int) -> bool:
        """Have ``size`` bytes of the budget free for somebody else, by giving up positions.

        False when rows are pinned, or what would leave cannot be written below.
        """
        assert self._budget is not None and self._lent == 0, "lent twice"
        top = self.top
        short = size - max(0, self._budget.free - self._reserve)
        positions = max(0, -(-short // top.bytes_per_position))
        if top.pinned or 2 * positions > top.limit:
            return False
        top.lent = positions
        try:
            self._shrink(top.limit - positions, 1)
        except (DiskFullError, WorkingSetError):
            top.lent = 0
            return False
        self._lent = size
        return True

    def take_back(self) -> None:
        """The bytes of `lend` are free again: use the positions that were given up for them."""
        self.top.expand()
        self._lent = 0
        self._account()

    # -- the contract of a tier -----------------------------------------------------------------

    def lookup(self, keys: Keys, counts: Counts) -> tuple[Rows, Mask]:
        """Hand rows to the tier above; what this cache lacks comes from below, past it."""
        rows, missing = self.top.lookup(keys, counts)
        return self._complete(rows, missing, lambda k, m: self.below.lookup(k, counts[m]))

    def peek(self, keys: Keys) -> tuple[Rows, Mask]:
        """Copy rows out; nothing is counted or moved."""
        rows, missing = self.top.peek(keys)
        return self._complete(rows, missing, lambda k, m: self.below.peek(k))

    def write(self, rows: Rows) -> None:
        """Take rows back from above into the cache; what they push out goes below.

        Raises: DiskFullError, and WorkingSetError when pins are in the way of `make_room`; each row
        then is as before or as written.
        """
        for piece in self._pieces(np.arange(len(rows))):
            self.make_room(len(piece))
            part = rows.take(piece)
            self._push_out(self.top.evict_for(part.keys))
            positions, _ = self.top.admit(part)
            # Pins may leave no place: then these rows go past the cache.
            self._write_back(part.take(positions < 0))
            self._account()

    def delete(self, keys: Keys) -> None:
        """Forget these keys below and here, in this order: a failure must not bare an old version.

        None of them may be pinned.
        """
        self.below.delete(keys)
        self.top.delete(keys)

    def flush(self) -> None:
        """Write all dirty rows below, and round the copy here to what was written.

        With rows narrower than float32 the resident copy is rounded too, so that a run that goes
        on equals one that resumes. Rows may be pinned, but nobody may work in them meanwhile.
        """
        start = 0
        while len(piece := self.top.dirty_positions(start, self._piece)):
            limit = self.top.limit
            self.make_room(len(piece))
            if self.top.limit < limit:  # rows have left or moved
                start = 0
                continue
            self._write_down(piece)
            start = int(piece[-1]) + 1
        self.below.flush()

    def check(self) -> list[str]:
        """Broken invariants of the cache, the tier below, and between them."""
        wrong = self.top.check() + self.below.check()
        if self._budget is not None and self._budget.used > self._budget.total:
            wrong.append(
                f"{self._budget.what}: expected at most {self._budget.total} bytes held, got "
                f"{self._budget.used}"
            )
        for piece in self._pieces(self.top.occupied()):
            rows = self.top.rows_at(piece)
            rows = rows.take(~rows.dirty)
            below, missing = self.below.peek(rows.keys)
            below.values[missing] = self._fresh(rows.keys[missing])
            wrong += differing(self.name, rows, below, missing, self._rounded(below.values))
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
            raise too_small(self.top, len(positions), self._budget, self.below)

    def _shrink(self, limit: int, rows: int) -> None:
        while len(self.top) > limit:
            self._push_out(self.top.evict(self._evictable(rows, len(self.top) - limit)))
        if limit < self.top.limit:
            self.top.shrink(limit)
            self._account()

    def _coming(
        self, number: int, keys: Keys, positions: Positions, most: int
    ) -> tuple[Keys, Batches]:
        """Keys to be read for later batches, and those batches: what index and budget allow.

        Only from an SSD right below: of a cache below nobody could say later who had the row.
        """
        if self.ahead is None or isinstance(self.below, Hierarchy):
            return _NOTHING
        most = self.ahead.room(int(np.count_nonzero(positions < 0)), most)
        free = self._budget.free if self._budget else 0
        while most and self.below.growth_bound(len(keys) + most) > free:
            most //= 2
        return self.ahead.wanted(number, most) if most else _NOTHING

    def _fill(
        self, keys: Keys, counts: Counts, positions: Positions, coming: tuple[Keys, Batches]
    ) -> None:
        """Bring what is missing, and in the same requests what is to come. Sets ``positions``."""
        own = len(missing := np.flatnonzero(positions < 0))
        wanted = np.concatenate((keys[missing], coming[0]))
        uses = np.concatenate((counts[missing], np.zeros(len(coming[0]), np.int32)))
        for piece in self._pieces(np.arange(len(wanted))):
            mine, later = piece[piece < own], piece[piece >= own] - own
            found = self._bring(wanted[piece], uses[piece])
            self.top.pin(found[: len(mine)])
            positions[missing[mine]] = found[: len(mine)]
            keep(self.top, found[len(mine) :], coming[1][later], ahead=True)

    def _bring(self, keys: Keys, counts: Counts) -> Positions:
        """Fetch rows that the cache lacks and admit them: (U,) int64 positions.

        -1 for keys that are to come (their count is 0) and that no tier has.
        """
        rows, missing = self.below.lookup(keys, counts)
        asked = ~missing | (counts > 0)
        if not asked.all():
            rows, missing, counts = rows.take(asked), missing[asked], counts[asked]
        positions = np.full(len(keys), -1, np.int64)
        unseen = np.flatnonzero(missing)
        if len(unseen):
            rows.values[unseen] = self._fresh(rows.keys[unseen])
            self.first_seen.keys += len(unseen)
            self.first_seen.accesses += int(counts[unseen].sum())
        # What comes from below is the version below has: clean here, even if it is dirty there.
        rows.dirty[:] = False
        self._push_out(self.top.evict_for(rows.keys))
        positions[asked], _ = self.top.admit(rows)
        return positions

    def _limit_for(self, rows: int, resident: int) -> int:
        """The positions to keep, so that ``rows`` rows and all those that leave can be written."""
        top, budget = self.top, self._budget
        if budget is None:
            return top.limit
        short = self.below.growth_bound(rows) - budget.free
        step = budget.total // (_SHRINK_PARTS * top.bytes_per_position)
        if short <= 0:
            eased = top.limit - step
            wanted = eased >= 2 * rows and not top.pinned and self.wants_room
            return eased if wanted else top.limit
        limit = top.limit
        while short > 0:
            limit -= 1 + short // top.bytes_per_position
            if top.pinned or limit < resident:
                raise too_small(self.top, rows, self._budget, self.below)
            freed = (top.limit - limit) * top.bytes_per_position
            leaving = max(0, len(top) - limit)
            short = self.below.growth_bound(rows + leaving) - budget.free - freed
        return limit - step if limit - step >= 2 * rows else limit

    def _evictable(self, rows: int, count: int) -> int:
        """How many of ``count`` rows can be written below with the bytes that are free now."""
        assert self._budget is not None
        count = min(count, self._piece)
        if self.below.growth_bound(count) > self._budget.free:
            # What has been evicted so far gives its memory back first.
            self.top.shrink(len(self.top))
            self._account()
        while self.below.growth_bound(count) > self._budget.free:
            if count == 1:
                raise too_small(self.top, rows, self._budget, self.below)
            count //= 2
        return count

    def _push_out(self, evicted: Rows) -> None:
        """Give evicted rows to the tier below, or take them back here when it fails."""
        try:
            self._write_back(evicted)
        except BaseException:
            self.top.admit(evicted)  # their places are still free
            raise
        self._account()

    def _write_back(self, rows: Rows) -> None:
        """Give rows to the tier below; a clean row has its copy there or needs none."""
        below_caches = isinstance(self.below, Hierarchy)
        if not (below_caches and self._passes_fresh) and not rows.dirty.all():
            rows = rows.take(rows.dirty | (below_caches & (rows.steps > 0)))
        if len(rows):
            self.below.write(rows)

    def _write_down(self, positions: Positions) -> None:
        """Write dirty rows below; they stay here, clean."""
        rows = self.top.rows_at(positions)
        self._write_back(rows)
        self.top.dirty[positions] = 0
        if self._shape.codec != CODECS["float32"]:
            self.top.array.scatter(positions, self._rounded(rows.values))
        self._account()

    def _complete(self, rows: Rows, missing: Mask, ask: Ask) -> tuple[Rows, Mask]:
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
        if self._budget is not None:
            array = self.top.array.bytes_per_position
            self._budget.hold("cache", self.top.limit * array + self.top.overhead_bytes)
            self._budget.hold("ssd", self.below.memory_bytes)
