"""Rewrite: the reachable rows of one table, in their order, into another log.

The new blocks are full, but for the last below the end of each kept cut. Since the order is kept
and all hidden rows are left out, a cut at the new place of its end shows just what it showed, and
no tombstone is needed any more.

Threads: one owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from storage.block import SEGMENT_BITS, Blocks, BlockShape
from storage.buffer import WriteBuffer
from storage.errors import CorruptError
from storage.examine import note_damaged
from storage.log import BlockLog
from storage.losses import Losses
from storage.reachable import Reachable
from storage.rows import Positions

BUFFER_BYTES = 4 << 20
"""Of a buffer; five are held."""


class Rewrite:
    """See the module's docstring. source and target: the logs; target has no such blocks yet."""

    def __init__(self, source: BlockLog, target: BlockLog, table: str, shape: BlockShape) -> None:
        self._source, self._table, self._shape = source, table, shape
        count = max(1, BUFFER_BYTES // shape.bytes)
        self._blocks = np.zeros(count, shape.dtype)
        self._target, self._out = target, WriteBuffer(table, shape, target, blocks=count)

    def run(
        self,
        reachable: Reachable,
        ends: Sequence[int],
        progress: Callable[[int], None],
        losses: Losses | None = None,
    ) -> dict[int, int]:
        """Where each of the ends of cuts lies in the target; all is on the disk on return.

        progress: called with how many rows more were copied. losses: takes damaged blocks; without
        it, one with reachable rows is a CorruptError. Raises: DiskFullError. The source never
        changes.
        """
        moved: dict[int, int] = {}
        begin = 0
        for end in sorted(set(ends)):
            for numbers in self._numbers(reachable, begin, end):
                progress(self._copy(numbers, reachable, losses))
            self._out.end_block()
            self._send_if_full()
            moved[end], begin = self._out.end, end
        self._out.send()
        self._target.wait()
        self._out.collect()
        return moved

    def _numbers(self, reachable: Reachable, begin: int, end: int) -> Iterator[Positions]:
        """The blocks with reachable rows, ascending, as many at once as fit."""
        waiting = np.empty(0, np.int64)
        for segment in reachable.segments.present.tolist():
            first, last = segment << SEGMENT_BITS, segment + 1 << SEGMENT_BITS
            if first < end and last > begin:
                found = reachable.blocks(max(first, begin), min(last, end), self._shape.rows)
                waiting = np.concatenate((waiting, found))
            while len(waiting) >= len(self._blocks):
                yield waiting[: len(self._blocks)]
                waiting = waiting[len(self._blocks) :]
        if len(waiting):
            yield waiting

    def _copy(self, numbers: Positions, reachable: Reachable, losses: Losses | None) -> int:
        """Copy the reachable rows of these blocks: how many."""
        chosen = reachable.select(numbers, self._shape.rows)
        blocks = self._blocks[: len(numbers)]
        damaged = self._source.read(self._table, numbers, blocks)
        if damaged and losses is None:
            raise CorruptError(
                f"{self._source.path}: table {self._table!r}: expected a sound block "
                f"{numbers[damaged[0]]}, but it is damaged, and {int(chosen[damaged[0]].sum())} "
                f"rows lie in it; run terrace check --repair, or restore a backup"
            )
        if damaged and losses is not None:
            note_damaged(self._source, reachable, self._shape, losses, numbers[damaged])
            chosen[damaged] = False
        self._append(blocks, *np.nonzero(chosen))
        return int(np.count_nonzero(chosen))

    def _append(self, blocks: Blocks, block: Positions, place: Positions) -> None:
        while len(block):
            count = min(len(block), self._out.room)
            b, p = block[:count], place[:count]
            self._out.fill(blocks["keys"][b, p], blocks["steps"][b, p], blocks["records"][b, p])
            self._send_if_full()
            block, place = block[count:], place[count:]

    def _send_if_full(self) -> None:
        if not self._out.room:
            self._out.send()
