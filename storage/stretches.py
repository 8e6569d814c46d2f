"""Stretches: a set of block numbers, as the intervals of consecutive ones, which are few.

Segments are freed whole, so there are at most as many stretches as segments: 16 bytes each.

Threads: no state that changes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from storage.block import SEGMENT_BITS
from storage.rows import Positions


class Stretches:
    """Of ascending intervals (first, one more than the last), which may touch, never overlap.

    first, end: (n,) int64 of the stretches, each as long as can be. `len` is that of all blocks.
    """

    def __init__(self, intervals: Iterable[tuple[int, int]]) -> None:
        firsts, ends = array("q"), array("q")
        # A Python loop over runs of the directory, of about 4 KiB: 0.3 us each, beside its reading.
        for first, end in intervals:
            if len(ends) and ends[-1] == first:
                ends[-1] = end
            else:
                firsts.append(first)
                ends.append(end)
        self.first = np.array(firsts, np.int64)
        self.end = np.array(ends, np.int64)

    def __len__(self) -> int:
        return int((self.end - self.first).sum())

    def below(self, end: int) -> Stretches:
        """Those numbers that are lower than ``end``."""
        some = self.first < end
        ends = np.minimum(self.end[some], end)
        return Stretches(zip(self.first[some].tolist(), ends.tolist(), strict=True))

    def batches(self, most: int) -> Iterator[Positions]:
        """All numbers, ascending, up to ``most`` at a time."""
        waiting, count = [np.empty(0, np.int64)], 0
        for first, end in zip(self.first.tolist(), self.end.tolist(), strict=True):
            while first < end:
                part = np.arange(first, min(end, first + most - count))
                waiting.append(part)
                first, count = first + len(part), count + len(part)
                if count == most:
                    yield np.concatenate(waiting)
                    waiting, count = [np.empty(0, np.int64)], 0
        if count:
            yield np.concatenate(waiting)

    @property
    def segments(self) -> Positions:
        """(n,) int64 numbers of the segments that some of these blocks lie in, ascending."""
        first, last = self.first >> SEGMENT_BITS, (self.end - 1) >> SEGMENT_BITS
        counts = last - first + 1
        starts = np.cumsum(counts) - counts
        return np.unique(np.repeat(first - starts, counts) + np.arange(counts.sum()))

    def count_in(self, segments: Positions) -> int:
        """How many of these blocks lie in the given segments."""
        edges = np.concatenate((segments, segments + 1)) << SEGMENT_BITS
        below = self._count_below(edges)
        return int((below[len(segments) :] - below[: len(segments)]).sum())

    def first_outside(self, others: Stretches) -> int:
        """The lowest number that the others do not have; 2**62 when they have all."""
        which = np.searchsorted(others.first, self.first, "right") - 1
        reach = np.append(others.end, 0)[which]  # of the stretch that may hold it; 0 for none
        outside = np.flatnonzero(self.end > reach)
        if not len(outside):
            return 1 << 62
        return int(max(self.first[outside[0]], reach[outside[0]]))

    def _count_below(self, numbers: Positions) -> Positions:
        totals = np.append(0, np.cumsum(self.end - self.first))
        which = np.searchsorted(self.first, numbers, "right")
        over = np.append(0, self.end)[which] - numbers
        below: Positions = totals[which] - np.maximum(over, 0)
        return below
