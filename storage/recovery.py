"""Recovery: what is live in a table's log, from its directory and tombstones, without its rows.

Versions are replayed in the order of their blocks, so the newest one counts; a tombstone comes in
where it was made, so it hides what is older, and nothing that is newer. Many versions are taken at
once, sorted as the index is, so that it is filled from front to back: ten times as fast, at 20
million rows, as one after another all over memory.

Threads: one owner.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any

import numba as nb
import numpy as np

from storage.address import AddressIndex
from storage.block import Run
from storage.log import BlockLog
from storage.losses import Losses
from storage.radix import newest
from storage.rows import Keys, Positions
from storage.segments import Segments

NOWHERE = np.empty(0, np.int64)
"""Addresses of rows that are gone."""
# As many versions at once as there are keys, within these bounds: 3 to 200 MB.
_LEAST, _MOST = 1 << 16, 1 << 22


@nb.njit(nogil=True, cache=True)
def _place(blocks: Any, counts: Any, bits: Any, addresses: Any) -> None:
    """Addresses of all rows of these blocks, which have so many each."""
    row = 0
    for i in range(blocks.shape[0]):
        for place in range(counts[i]):
            addresses[row] = (blocks[i] << bits) | place
            row += 1


def _numbers(firsts: Positions, lengths: Positions) -> Positions:
    """Numbers of the blocks of runs that start at ``firsts`` and have so many blocks."""
    ends = np.cumsum(lengths)
    blocks: Positions = np.arange(ends[-1]) + np.repeat(firsts - (ends - lengths), lengths)
    return blocks


def _split(run: Run, block: int) -> tuple[Run, Run]:
    """What lies below ``block``, and the rest."""
    first, counts, keys = run
    before = max(0, block - first)
    rows = int(counts[:before].sum(dtype=np.int64))
    return (first, counts[:before], keys[:rows]), (first + before, counts[before:], keys[rows:])


class Recovery:
    """See the module's docstring. ``index`` and ``segments``: of what was replayed so far.

    place_bits: bits of an address that tell rows of a block apart. losses: takes what is damaged;
    without it that is a CorruptError.
    """

    def __init__(
        self, log: BlockLog, table: str, place_bits: int, losses: Losses | None = None
    ) -> None:
        self._losses = losses
        self.index, self.segments = AddressIndex(), Segments(place_bits)
        self._log, self._table, self._bits = log, table, place_bits
        self._runs: list[Run] = []
        self._waiting = 0

    def run(self, stops: Iterable[int] = ()) -> Iterator[int]:
        """Replay everything; a pause at each stop, when what lies in lower blocks is replayed.

        stops: block numbers, ascending. Gives each. Raises: CorruptError.
        """
        tombstones = (
            (end, 0, keys) for end, keys in sound_tombstones(self._log, self._table, self._losses)
        )
        pauses = ((stop, 1, None) for stop in stops)
        # Both by block; a tombstone that was made just where a stop is comes before it.
        events = heapq.merge(tombstones, pauses, key=lambda event: event[:2])
        event = next(events, None)
        lost = None if self._losses is None else self._losses.unknown
        for run in self._log.directory(self._table, lost):
            while event is not None and event[0] < run[0] + len(run[1]):
                before, run = _split(run, event[0])
                self._add(before)
                yield from self._apply(event)
                event = next(events, None)
            self._add(run)
        while event is not None:
            yield from self._apply(event)
            event = next(events, None)
        self._replay()

    def _add(self, run: Run) -> None:
        self._runs += [run] if len(run[1]) else []
        self._waiting += len(run[2])
        if self._waiting >= min(max(_LEAST, len(self.index)), _MOST):
            self._replay()

    def _apply(self, event: tuple[int, int, Keys | None]) -> Iterator[int]:
        self._replay()
        stop, _, buried = event
        if buried is None:
            yield stop
        else:
            self.segments.move(self.index.erase(buried), NOWHERE)

    def _replay(self) -> None:
        if self._runs:
            firsts = np.array([first for first, _, _ in self._runs])
            counts = [counts for _, counts, _ in self._runs]
            blocks = _numbers(firsts, np.array([len(some) for some in counts]))
            self.segments.reserve(int(blocks[-1]) + 1)
            self.segments.add(blocks)
            keys = np.concatenate([keys for _, _, keys in self._runs])
            addresses = np.empty(len(keys), np.int64)
            _place(blocks, np.concatenate(counts), self._bits, addresses)
            mixed, addresses = newest(keys, addresses)
            self.segments.move(self.index.load(mixed, addresses), addresses)
        self._runs, self._waiting = [], 0


def sound_tombstones(
    log: BlockLog, table: str, losses: Losses | None
) -> Iterator[tuple[int, Keys]]:
    """The tombstones of a table; with ``losses``, only the sound ones."""
    if losses is None:
        yield from log.tombstones[table]
        return
    losses.tombstones = 0
    for tombstone in log.tombstones[table].each():
        if tombstone is None:
            losses.tombstones += 1
        else:
            yield tombstone


def recover(log: BlockLog, table: str, place_bits: int) -> tuple[AddressIndex, Segments]:
    """Index and segments of all committed blocks. Raises: CorruptError."""
    recovery = Recovery(log, table, place_bits)
    for _ in recovery.run():
        pass
    return recovery.index, recovery.segments
