"""Answer: rows that were pulled, and how they are taken from the tiers.

Threads: the owner's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from ps.server.change import resident
from ps.store import Store
from storage.array import FloatArray
from storage.rows import Floats, Keys

Room = Callable[[int], Floats]
"""From the clock of an answer, where embeddings are to be written."""


@dataclass(frozen=True)
class Answer:
    """Rows that were pulled. values: (U, width) float32. clock: see `Sessions`. steps: (U,) uint32
    and missing: (U,) bool of whole rows, else None. hits: rows that were in the cache.
    """

    clock: int
    values: Floats
    steps: Any = None
    missing: Any = None
    hits: int = 0


def gather(store: Store, table: str, keys: Keys, clock: int, room: Room | None) -> Answer:
    """Embeddings of unique keys; what the cache lacks is brought there. room: None for an array of
    their own.
    """
    stack = store.stacks[table]
    array, seen = stack.top.array, stack.top.stats
    assert isinstance(array, FloatArray)
    before = seen.key_hits
    shape = (len(keys), stack.table.dim)
    values = np.empty(shape, np.float32) if room is None else room(clock)
    with closing(resident(store, table, keys)) as pieces:
        for piece, positions in pieces:
            array.embeddings_at(positions, values[piece])
    return Answer(clock, values, hits=seen.key_hits - before)


def hand_out(store: Store, table: str, keys: Keys, clock: int) -> Answer:
    """Whole rows for an owner elsewhere: see `Store.hand_out`."""
    rows, missing = store.hand_out(table, keys)
    return Answer(clock, rows.values, rows.steps, missing)
