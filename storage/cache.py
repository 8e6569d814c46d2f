"""CacheTier: a bounded number of rows in memory, on any torch device.

The same class is the RAM tier (numba kernels work in its arrays), the HBM tier (torch ops do) and
the RAM tier below HBM (rows are copied out and in, in a narrower type if the table asks for one).
Index, keys, pins and policy stay on the host.

Invariants:

* a position is either free (on the free stack or never used) or holds exactly one key;
* a pinned position is never evicted, moved or reused; pins are counted;
* a dirty row leaves only in the rows that the evicting call returns.

Rows that a coming batch needs, as far as ``dues`` knows, leave after all others.

Threads: one owner at a time (the store's planner), with one exception: whoever has a position
pinned may work in its row, set its step and mark it dirty meanwhile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storage.array import RowArray
from storage.due import PINNED, Dues
from storage.index import SLOT_BYTES, PositionIndex, slots_for
from storage.marks import MARK_BYTES, Marks
from storage.policy import Policy, layout_of, make_policy
from storage.rows import Counts, Keys, Positions, Rows
from storage.stats import TierStats
from storage.vacancies import Vacancies

_MOVE = 4096
_REHASH = 0.8


def overhead_bytes(capacity: int, policy: str = "lru") -> int:
    """Host bytes that ``capacity`` positions cost beside their rows."""
    layout = layout_of(policy, capacity)
    per_position = MARK_BYTES + layout.bytes_per_position
    return capacity * per_position + slots_for(capacity) * SLOT_BYTES + layout.fixed_bytes


class CacheTier:
    """``capacity`` rows in ``array``; see the module's docstring.

    steps: (C,) uint32 and dirty: (C,) uint8 by position, written by the kernels that apply
    gradients to pinned rows. ``limit``: positions in use, C until `shrink`. ``lent``: those of the
    others that `expand` will use again. policy: a name, or one that is set up for C positions.
    """

    def __init__(
        self,
        name: str,
        array: RowArray,
        *,
        capacity: int,
        width: int,
        policy: str | Policy = "lru",
    ) -> None:
        self.name = name
        self.width = width
        self.array = array
        self.limit, self.lent = capacity, 0
        self.stats = TierStats()
        self._marks = marks = Marks(capacity)
        self.steps, self.dirty, self._pins, self._keys = (
            marks.steps, marks.dirty, marks.pins, marks.keys,
        )  # fmt: skip
        self._pinned = 0
        self.dues = Dues(self._pins)
        self._index = PositionIndex(self._keys)
        self.policy = make_policy(policy, capacity, self._keys)
        self._layout = self.policy.layout
        self._vacancies = Vacancies(self._keys)
        self._fresh = 0

    def __len__(self) -> int:
        return self._fresh - len(self._vacancies)

    @property
    def overhead_bytes(self) -> int:
        """Host bytes held beside the rows themselves."""
        per_position = MARK_BYTES + self._layout.bytes_per_position
        return self.limit * per_position + self._index.slots.nbytes + self._layout.fixed_bytes

    @property
    def bytes_per_position(self) -> int:
        """Bytes that one position less gives back at once: row, marks and policy, not the index."""
        return self.array.bytes_per_position + MARK_BYTES + self._layout.bytes_per_position

    @property
    def room(self) -> int:
        """Rows that could be admitted now: free positions and unpinned rows."""
        return self.limit - self._pinned

    @property
    def dirty_rows(self) -> int:
        """Rows that the tier below does not hold. Looks at every position."""
        return int(np.count_nonzero(self.dirty[: self._fresh]))

    @property
    def pinned(self) -> int:
        """Positions that are pinned at least once."""
        return self._pinned

    # -- the tier above or the step works in place --------------------------------------------

    def place(self, keys: Keys) -> Positions:
        """(U,) int64 positions, -1 where missing; changes nothing."""
        return self._index.find(keys)

    def use(self, positions: Positions, counts: Counts) -> NDArray[np.bool_]:
        """Count one batch's use of its working set, as `place` found it: (U,) int64 positions.

        Returns (U,) bool: which rows had been read ahead of this use. They count as misses, and for
        the policy they come only now.
        """
        early = self.dues.ahead(positions)
        hit = (positions >= 0) & ~early
        self.policy.touch(positions[hit])
        self.policy.remove(positions[early])
        self.policy.insert(positions[early])
        self.dues.arrived(positions[early])
        self.stats.count(hit, counts)
        return early

    def unpinned(self, positions: Positions) -> NDArray[np.bool_]:
        """(U,) bool: nobody has pinned these positions."""
        free: NDArray[np.bool_] = self._pins[positions] & PINNED == 0
        return free

    def pin(self, positions: Positions) -> None:
        """Keep these occupied positions where they are until as many `unpin` calls."""
        self._pinned += int(np.count_nonzero(self.unpinned(positions)))
        self._pins[positions] += np.uint16(1)

    def unpin(self, positions: Positions) -> None:
        """Undo one `pin` of these positions."""
        assert not self.unpinned(positions).any(), "unpinned more than pinned"
        self._pins[positions] -= np.uint16(1)
        self._pinned -= int(np.count_nonzero(self.unpinned(positions)))

    # -- coming batches -------------------------------------------------------------------------

    @property
    def spare(self) -> int:
        """Rows that could be admitted in the place of nothing that is pinned or needed."""
        return self.limit - int(np.count_nonzero(self._pins[: self._fresh]))

    def look_no_further(self) -> None:
        """No coming batch is known any more. Rows that were read ahead, and not used, are gone."""
        unused = np.flatnonzero(self.dues.unused())
        unused = unused[self.unpinned(unused) & (self.dirty[unused] == 0)]
        self.policy.remove(unused)
        self._vacate(unused)
        self.dues.end()

    def demote_fresh(self, positions: Positions) -> None:
        """Of these unique positions, make those the first to go that nobody has pinned and whose
        step is 0: no step has changed their rows, and they can be made again."""
        fresh = (self._pins[positions] == 0) & (self.steps[positions] == 0)
        self.policy.demote(positions[fresh])

    def keys_at(self, positions: Positions) -> Keys:
        """(U,) uint64 copy of the keys at these occupied positions."""
        keys: Keys = self._keys[positions]
        return keys

    # -- the contract of a tier -----------------------------------------------------------------

    def lookup(self, keys: Keys, counts: Counts) -> tuple[Rows, NDArray[np.bool_]]:
        """Copy rows out for the tier above and make them the first to be evicted here."""
        positions = self._index.find(keys)
        hit = positions >= 0
        self.policy.demote(positions[hit])
        self.stats.count(hit, counts)
        return self._read(keys, positions), ~hit

    def peek(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """Copy rows out; nothing is counted or reordered."""
        positions = self._index.find(keys)
        return self._read(keys, positions), positions < 0

    def evict_for(self, keys: Keys) -> Rows:
        """Evict what stands in the way of admitting ``keys``, but none of those, and return it.

        The next `admit` of these keys then evicts nothing, so a caller that cannot write the rows
        below admits them again and has lost nothing.
        """
        known = self._index.find(keys)
        self.policy.expect(keys[known < 0])
        known = known[known >= 0]
        room = len(self._vacancies) + self.limit - self._fresh
        self.pin(known)
        evicted = self.evict(max(0, len(keys) - len(known) - room))
        self.unpin(known)
        return evicted

    def admit(self, rows: Rows) -> tuple[Positions, Rows]:
        """Take rows in: (position of each, -1 where refused; rows evicted for them).

        A key that is here already is overwritten in place. Rows are refused only when everything
        else is pinned. The evicted rows keep their dirty mark: the caller writes those back.
        """
        positions = self._index.find(rows.keys)
        known = positions >= 0
        if known.any():
            self._overwrite(positions[known], rows.take(known))
        absent = np.flatnonzero(~known)
        self.pin(positions[known])
        targets, evicted = self._claim(len(absent))
        self.unpin(positions[known])
        absent = absent[: len(targets)]
        positions[absent] = targets
        self._fill(targets, rows.take(absent) if len(absent) < len(rows) else rows)
        return positions, evicted

    def take(self, keys: Keys) -> Positions:
        """Positions for keys that are not here, where the caller sets the rows; their step is 0.

        What they push out is gone: for copies of rows that somebody else owns. (n,) int64, fewer
        than asked for when the others are pinned.
        """
        self.policy.expect(keys)
        room = len(self._vacancies) + self.limit - self._fresh
        victims = self._victims(max(0, len(keys) - room))
        self._vacate(victims)
        self.stats.evicted += len(victims)
        positions, _ = self._claim(min(len(keys), room + len(victims)))
        self.steps[positions] = 0
        self._index.insert(keys[: len(positions)], positions)
        self.policy.insert(positions)
        self.stats.admitted += len(positions)
        return positions

    def delete(self, keys: Keys) -> None:
        """Forget keys. Their positions must not be pinned."""
        positions = self._index.find(keys)
        positions = positions[positions >= 0]
        assert self.unpinned(positions).all(), "deleted a pinned row"
        self.policy.remove(positions)
        self._vacate(positions)

    def dirty_positions(self, start: int, count: int) -> Positions:
        """(n,) int64 copy of the first ``count`` positions from ``start`` on, ascending, whose row
        the tier below does not hold."""
        return self._marks.dirty_positions(start, self._fresh, count)

    def occupied(self) -> Positions:
        """(n,) int64 copy of the positions that hold a row, ascending."""
        return np.flatnonzero(self._occupancy())

    def rows_at(self, positions: Positions) -> Rows:
        """Copy of the rows at these occupied positions."""
        return self._read(self.keys_at(positions), positions)

    def evict(self, count: int) -> Rows:
        """Let go of up to ``count`` unpinned rows, the policy's choice, and return them."""
        return self._evict(self._victims(count))

    def shrink(self, limit: int) -> None:
        """Use only the positions below ``limit`` from now on; memory above goes to the system.

        Nothing may be pinned and at most ``limit`` rows held (`evict` first). Rows that stand too
        high move down. The slots of the index follow in larger steps: they have to be filled anew.
        """
        assert self._pinned == 0 and len(self) <= limit <= self.limit, "shrank under pins or rows"
        held = self._occupancy()
        high = limit + np.flatnonzero(held[limit:])
        low = np.flatnonzero(~held[:limit])[: len(high)]
        targets = np.concatenate((low, np.arange(self._fresh, limit)))[: len(high)]
        for start in range(0, len(high), _MOVE):
            self._move(high[start : start + _MOVE], targets[start : start + _MOVE])
        held = np.concatenate((held[:limit], np.zeros(max(0, limit - len(held)), np.bool_)))
        held[targets] = True
        self._refree(held)
        self.limit = limit
        self.array.release(limit)
        self._marks.release(limit)
        self.dues.release(limit)
        self.policy.resize(limit)
        indexed = limit + self.lent
        if slots_for(indexed) < _REHASH * len(self._index.slots):
            self._index.resize(indexed, np.flatnonzero(held))

    def expand(self) -> None:
        """Use the ``lent`` positions again."""
        self.limit, self.lent = self.limit + self.lent, 0
        self.policy.resize(self.limit)

    def check(self) -> list[str]:
        """Broken invariants of index, policy, pins and free positions."""
        held = np.sort(self._index.occupied())
        wrong = []
        if not np.array_equal(held, self.occupied()):
            wrong.append(f"{self.name}: index has {len(held)} rows, positions say {len(self)}")
        if np.count_nonzero(self._occupancy()) != len(self):
            wrong.append(f"{self.name}: a position is free twice")
        if not np.array_equal(self._index.find(self._keys[held]), held):
            wrong.append(f"{self.name}: a key is not found at its own position")
        if not np.array_equal(np.sort(self.policy.order()), held):
            wrong.append(f"{self.name}: the policy orders other positions than the index holds")
        if int(np.count_nonzero(self._pins & PINNED)) != self._pinned:
            wrong.append(f"{self.name}: {self._pinned} positions pinned, counts say otherwise")
        if len(held) and held[-1] >= self.limit:
            wrong.append(f"{self.name}: a row above the limit of {self.limit}")
        idle = np.ones(len(self.dirty), np.bool_)
        idle[held] = False
        if self.dirty[idle].any() or self._pins[idle].any():
            wrong.append(f"{self.name}: a free position is dirty, pinned or needed")
        return wrong + [f"{self.name}: {line}" for line in self.dues.check()]

    # -- private --------------------------------------------------------------------------------

    def _read(self, keys: Keys, positions: Positions) -> Rows:
        if len(positions) and positions.min() >= 0:
            values, steps = self.array.gather(positions), self.steps[positions]
            return Rows(keys, values, steps, self.dirty[positions] != 0)
        hit = positions >= 0
        rows = Rows.empty(len(keys), self.width)
        rows.keys[:] = keys
        rows.values[hit] = self.array.gather(positions[hit])
        rows.steps[hit] = self.steps[positions[hit]]
        rows.dirty[hit] = self.dirty[positions[hit]] != 0
        return rows

    def _overwrite(self, positions: Positions, rows: Rows) -> None:
        self.array.scatter(positions, rows.values)
        self.steps[positions] = rows.steps
        self.dirty[positions] |= rows.dirty
        self.dues.arrived(positions)
        self.policy.touch(positions)

    def _fill(self, positions: Positions, rows: Rows) -> None:
        self.array.scatter(positions, rows.values)
        self.steps[positions] = rows.steps
        self.dirty[positions] = rows.dirty
        self._index.insert(rows.keys, positions)
        self.policy.insert(positions)
        self.stats.admitted += len(positions)

    def _claim(self, count: int) -> tuple[Positions, Rows]:
        """Up to ``count`` free positions, evicting as needed, and what was evicted."""
        recycled = self._vacancies.pop(count)
        unused = min(count - len(recycled), self.limit - self._fresh)
        fresh = np.arange(self._fresh, self._fresh + unused)
        self._fresh += unused
        victims = self._victims(count - len(recycled) - unused)
        evicted = self._evict(victims)
        self._vacancies.pop(len(victims))  # the same ones
        return np.concatenate((recycled, fresh, victims)), evicted

    def _victims(self, count: int) -> Positions:
        """Up to ``count`` unpinned positions, taken out of the policy."""
        victims = self.policy.victims(count, self._pins)
        if len(victims) == count:
            return victims
        more = self.dues.furthest(count - len(victims), self._fresh)
        self.policy.remove(more)
        return np.concatenate((victims, more))

    def _evict(self, victims: Positions) -> Rows:
        """Copy of the rows at ``victims``, which the policy has let go; positions become free."""
        rows = self._read(self._keys[victims], victims)
        self._vacate(victims)
        self.stats.evicted += len(victims)
        return rows

    def _vacate(self, positions: Positions) -> None:
        self._index.erase(positions)
        self.dirty[positions] = 0
        self.dues.clear(positions)
        self._vacancies.push(positions)

    def _move(self, sources: Positions, targets: Positions) -> None:
        rows = self.rows_at(sources)
        self.policy.move(sources, targets)
        self._index.erase(sources)
        self.array.scatter(targets, rows.values)
        self.steps[targets] = rows.steps
        self.dirty[sources] = 0
        self.dirty[targets] = rows.dirty
        self.dues.move(sources, targets)
        self._index.insert(rows.keys, targets)

    def _occupancy(self) -> NDArray[np.bool_]:
        """(fresh,) bool: which of the positions used so far hold a key."""
        return self._vacancies.occupied(self._fresh)

    def _refree(self, held: NDArray[np.bool_]) -> None:
        """Make the free stack anew, lowest position first to be used."""
        highest = len(held) - int(held[::-1].argmax()) if held.any() else 0
        self._fresh = highest
        self._vacancies.clear()
        self._vacancies.push(np.flatnonzero(~held[:highest])[::-1])
