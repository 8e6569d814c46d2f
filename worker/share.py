"""Shares: which examples of a batch are whose, when several workers train or evaluate together.

A batch is the same whoever reads it, so every worker reads them all and takes its own part; no
examples travel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from worker.data.batch import Batch


@dataclass(frozen=True, slots=True)
class Share:
    """One worker's examples of a global batch. batch: its own, maybe none. total: of all workers.

    The shares of ranks 0, 1, ... are contiguous, follow each other and cover the batch.
    """

    batch: Batch
    total: int

    @staticmethod
    def of(batch: Batch, *, rank: int, world: int) -> Share:
        """The share of worker ``rank``: the batch itself when there is one worker."""
        if world == 1:
            return Share(batch, batch.size)
        start, stop = batch.size * rank // world, batch.size * (rank + 1) // world
        return Share(batch.slice(start, stop), batch.size)

    @property
    def weight(self) -> float:
        """What part of the global batch this is; 1.0 for all of it."""
        return self.batch.size / self.total


def turns(batches: Iterator[Batch], *, rank: int, world: int) -> Iterator[Batch]:
    """Of every ``world`` batches the one whose turn it is for ``rank``, or one without examples.

    All workers get equally many, and each batch is somebody's, whole: what is computed from it is
    what one worker computes, to the bit.
    """
    while (first := next(batches, None)) is not None:
        mine = first if rank == 0 else first.slice(0, 0)
        for number, batch in enumerate(islice(batches, world - 1), start=1):
            mine = batch if number == rank else mine
        yield mine
