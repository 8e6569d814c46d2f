"""Ghost: what the hit rate would have been with more RAM, or less, estimated beside the run.

It is told of every batch, and keeps a sample of the keys and no rows (`storage.reuse`): a few
hundred KiB by table, part of its RAM budget. An LRU is assumed, whatever the policy. The index of
the SSD tier takes as much whatever the RAM, so with twice the bytes there is room for more than
twice the rows, and that changes as the index grows: so what was hit is added up over short periods,
each with the rows that there was room for then.

A hit is a unique key of a batch that is in a cache (RAM, and HBM above it) when the batch comes.

Threads: told by the thread that stages; `report` under the planner's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ps.stack import Stack
from storage.address import ENTRY_BYTES
from storage.reuse import MissRatioCurve, small_curve
from storage.rows import Keys

FACTORS: Final = (0.5, 1.0, 2.0, 4.0)
"""Multiples of the RAM budget that are estimated."""

_PERIOD = 16


class Ghost:
    """An observer of a store. stacks: gives its stacks by table, as they are now. curve: from a
    table's RAM in bytes, what estimates; what it holds should be a part of that budget.
    """

    def __init__(
        self,
        stacks: Callable[[], Mapping[str, Stack]],
        curve: Callable[[int], MissRatioCurve] = small_curve,
    ) -> None:
        self._stacks = stacks
        self._tables = {
            name: _Table(stack, curve(stack.budget.total)) for name, stack in stacks().items()
        }

    def staged(self, requests: Mapping[str, Sequence[Keys]], unique: Mapping[str, Keys]) -> None:
        """Take a batch's unique keys into account. requests: not looked at."""
        for name, keys in unique.items():
            self._tables[name].add(keys, self._stacks()[name])

    def close(self) -> None:
        """Nothing to let go of; `report` goes on working while the store is open."""

    def report(self) -> dict[str, Any]:
        """By table, as JSON values: keys looked up, those first seen, and for each of `FACTORS`
        the RAM in bytes, the rows it has room for now, the share of keys that would have hit, and
        that share of the keys that are not first seen.
        """
        return {name: each.report(self._stacks()[name]) for name, each in self._tables.items()}


class _Table:
    """One table's curve, and what was hit so far at each multiple of its RAM."""

    def __init__(self, stack: Stack, curve: MissRatioCurve) -> None:
        self._curve = curve
        self._hits = np.zeros(len(FACTORS))
        self._rows = _room(stack)
        self._before = np.zeros(len(FACTORS))
        self._batches = 0

    def add(self, keys: Keys, stack: Stack) -> None:
        if self._batches % _PERIOD == 0:
            self._settle(stack)
        self._curve.add_batch(keys)
        self._batches += 1

    def _settle(self, stack: Stack) -> None:
        """End a period: what was hit in it, and with how many rows the next one begins."""
        self._hits += self._so_far() - self._before
        self._rows = _room(stack)
        self._before = self._so_far()

    def _so_far(self) -> NDArray[np.float64]:
        return self._curve.hit_rate(self._rows) * self._curve.accesses

    def report(self, stack: Stack) -> dict[str, Any]:
        self._settle(stack)
        keys = self._curve.accesses
        first = min(stack.hierarchy.first_seen.keys, keys)
        hits = np.clip(self._hits, 0, keys - first)
        sizes = [
            {
                "times_ram": factor, "ram_bytes": int(factor * stack.budget.total),
                "rows": int(rows), "hit_rate": float(hit / max(1, keys)),
                "hit_rate_seen_before": float(hit / max(1, keys - first)),
            }
            for factor, rows, hit in zip(FACTORS, self._rows, hits, strict=True)
        ]  # fmt: skip
        return {"keys": keys, "first_seen": first, "sample": self._curve.rate, "sizes": sizes}


def _room(stack: Stack) -> NDArray[np.float64]:
    """Rows that all caches would have room for at each multiple of the RAM: (4,) float64."""
    ram = stack.caches[-1]
    parts = stack.budget.parts
    fixed = parts["ssd"] + parts.get("hbm index", 0) + parts.get("ghost", 0)
    row = ram.bytes_per_position + ENTRY_BYTES
    factors = np.array(FACTORS)
    rows = factors * ram.limit + (factors - 1) * fixed / row
    if stack.table.rows is not None:
        rows = np.minimum(rows, stack.table.rows)
    return np.maximum(rows, 0) + sum(cache.limit for cache in stack.caches[:-1])
