"""Examine: read every block of one table, and find all that is damaged.

Threads: one owner.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from storage.block import SEGMENT_BITS, BlockShape
from storage.log import BlockLog
from storage.losses import Losses
from storage.reachable import Reachable
from storage.rows import Positions

_BUFFER_BYTES = 4 << 20


def examine(
    log: BlockLog,
    reachable: Reachable,
    shape: BlockShape,
    losses: Losses,
    progress: Callable[[int], None],
) -> None:
    """Add damaged and missing blocks to ``losses``, those that no row counts in, too.

    reachable: made with the same ``losses``. progress: called with how many blocks more were read.
    """
    buffer = np.zeros(max(1, _BUFFER_BYTES // shape.bytes), shape.dtype)
    for segment in reachable.segments.present.tolist():
        begin, end = segment << SEGMENT_BITS, segment + 1 << SEGMENT_BITS
        there = log.numbers(losses.table, begin, end)
        numbers = np.union1d(there, reachable.blocks(begin, end, shape.rows))
        numbers = np.setdiff1d(numbers, losses.unknown)
        for start in range(0, len(numbers), len(buffer)):
            piece = numbers[start : start + len(buffer)]
            damaged = log.read(losses.table, piece, buffer[: len(piece)])
            note_damaged(log, reachable, shape, losses, piece[damaged])
        progress(len(numbers))


def note_damaged(
    log: BlockLog, reachable: Reachable, shape: BlockShape, losses: Losses, numbers: Positions
) -> None:
    """Add these blocks to ``losses``, with the keys of their reachable rows."""
    chosen = reachable.select(numbers, shape.rows)
    for number, places in zip(numbers.tolist(), chosen, strict=True):
        keys = log.keys_of(losses.table, number)
        losses.blocks[number] = keys[np.flatnonzero(places[: len(keys)])].tolist()
