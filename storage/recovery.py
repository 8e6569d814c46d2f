"""Recovery: what is live in a table's log, from its directory and tombstones, without its rows.

Versions are replayed in the order of their blocks, so the newest one counts; a tombstone comes in
where it was made, so it hides what is older, and nothing that is newer.

Threads: one owner.
"""

from __future__ import annotations

import numpy as np

from storage.address import AddressIndex
from storage.log import BlockLog
from storage.rows import Keys, Positions
from storage.segments import Segments

_AT_ONCE = 1 << 16
NOWHERE = np.empty(0, np.int64)
"""Addresses of rows that are gone."""


def recover(log: BlockLog, table: str, place_bits: int) -> tuple[AddressIndex, Segments]:
    """Index and segments of all committed blocks. Raises: CorruptError."""
    index, segments = AddressIndex(), Segments(place_bits)
    keys: list[Keys] = []
    addresses: list[Positions] = []

    def replay() -> None:
        if keys:
            now = np.concatenate(addresses)
            segments.move(index.set(np.concatenate(keys), now), now)
            keys.clear()
            addresses.clear()

    tombstones = iter(log.tombstones[table])
    buried = next(tombstones, None)
    waiting = 0
    for first, counts, run in log.directory(table):
        segments.reserve(first + len(counts))
        segments.add(first, len(counts))
        ends = np.cumsum(counts, dtype=np.int64)
        place = np.arange(len(run)) - np.repeat(ends - counts, counts)
        address = np.repeat(np.arange(first, first + len(counts)), counts) << place_bits | place
        done = 0
        while buried is not None and buried[0] < first + len(counts):
            edge = int(ends[buried[0] - first - 1]) if buried[0] > first else 0
            keys.append(run[done:edge])
            addresses.append(address[done:edge])
            replay()
            segments.move(index.erase(buried[1]), NOWHERE)
            waiting, done, buried = 0, edge, next(tombstones, None)
        keys.append(run[done:])
        addresses.append(address[done:])
        waiting += len(run) - done
        if waiting >= _AT_ONCE:
            replay()
            waiting = 0
    replay()
    while buried is not None:
        segments.move(index.erase(buried[1]), NOWHERE)
        buried = next(tombstones, None)
    return index, segments
