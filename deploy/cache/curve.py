"""Curves: what LRU caches of all sizes hit, from one pass in bounded memory; and what to buy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.cache.study import Result, Watch
from storage.address import ENTRY_BYTES
from storage.cache import overhead_bytes
from storage.errors import ConfigError
from storage.keys import Deduper
from storage.reuse import MissRatioCurve
from worker.data.trace import Trace

_GIB = 1 << 30
_ENOUGH = 0.99
_STEPS = 64


def measure(
    trace: Trace, curve: MissRatioCurve, *, batch: int | None, watch: Watch
) -> MissRatioCurve:
    """Add a trace to a curve: access by access, or the working sets of batches.

    batch: accesses of a batch where the trace has none of its own; None: access by access.
    """
    deduper, done = Deduper(), 0
    for piece in trace.pieces():
        done += len(piece)
        if batch is None:
            curve.add(piece.keys)
        else:
            numbers = piece.batches
            if numbers is None:
                numbers = np.arange(done - len(piece), done) // batch
            for keys in np.split(piece.keys, 1 + np.flatnonzero(np.diff(numbers))):
                curve.add_batch(deduper.dedupe(keys)[0])
        watch(done, 0)
    return curve


def results_of(curve: MissRatioCurve, sizes: Sequence[int], seconds: float) -> list[Result]:
    """What the curve says at these sizes, as a replay of lru would."""
    first = round(curve.distinct_estimate)
    speed = curve.accesses / max(seconds, 1e-9)
    return [
        Result("lru", size, curve.accesses, round(rate * curve.accesses), first, speed)
        for size, rate in zip(sizes, curve.hit_rate(sizes), strict=True)
    ]


@dataclass(frozen=True)
class Demand:
    """What a user has and does. hbm, ram: bytes; 0 hbm is no third tier. row_floats: of embedding
    and optimizer state. uses_per_s: how many of what the curve counted come in a second."""

    hbm: int
    ram: int
    row_floats: int
    uses_per_s: float


@dataclass(frozen=True)
class Offer:
    """Budgets in bytes, what they hold in rows, and what to expect of them, as shares of uses."""

    hbm: int
    ram: int
    hbm_rows: int
    ram_rows: int
    hbm_hits: float
    ram_hits: float
    first_seen: float
    ssd_reads_per_s: float

    def report(self) -> dict[str, Any]:
        """As JSON values."""
        return dict(vars(self))


def recommend(curve: MissRatioCurve, demand: Demand) -> dict[str, Offer]:
    """Offers by name: "recommended", "all of it", and shares and multiples of all.

    Recommended are the smallest budgets that still hit 99 % of what all of it hits, HBM first.
    A tier that owns a row is the only one that counts it, as lower copies are the first to go, so
    two tiers hit what one LRU of both sizes does. Raises: ConfigError when RAM is too little.
    """
    full = offer(curve, demand, demand.hbm, demand.ram)
    shares = np.geomspace(1 / 1024, 1, _STEPS)
    hbm, ram = demand.hbm, demand.ram
    for share in shares:
        if offer(curve, demand, int(share * demand.hbm), demand.ram).hbm_hits >= (
            _ENOUGH * full.hbm_hits
        ):
            hbm = int(share * demand.hbm)
            break
    enough = _ENOUGH * (full.hbm_hits + full.ram_hits)
    for share in shares:
        found = _offer(curve, demand, hbm, int(share * demand.ram))
        if found is not None and found.hbm_hits + found.ram_hits >= enough:
            ram = int(share * demand.ram)
            break
    offers = {"recommended": offer(curve, demand, hbm, ram), "all of it": full}
    for name, factor in (("half", 0.5), ("twice", 2.0)):
        other = _offer(curve, demand, int(factor * demand.hbm), int(factor * demand.ram))
        if other is not None:
            offers[name] = other
    return offers


def offer(curve: MissRatioCurve, demand: Demand, hbm: int, ram: int) -> Offer:
    """What these budgets hold and hit. Raises: ConfigError when RAM cannot even hold the index."""
    found = _offer(curve, demand, hbm, ram)
    if found is None:
        need = round(curve.distinct_estimate) * ENTRY_BYTES / _GIB
        raise ConfigError(
            f"--ram-gb: expected more than the {need:.3g} GiB that the index of "
            f"{curve.distinct_estimate:,.0f} rows takes, got {ram / _GIB:.3g}"
        )
    return found


def _offer(curve: MissRatioCurve, demand: Demand, hbm: int, ram: int) -> Offer | None:
    distinct, each = curve.distinct_estimate, overhead_bytes(1000) / 1000
    row = 4 * demand.row_floats
    hbm_rows = min(hbm // row, int(distinct))
    left = ram - hbm_rows * each - distinct * ENTRY_BYTES
    if left < 0:
        return None
    ram_rows = min(int(left / (row + each)), int(distinct) - hbm_rows)
    upper, both = curve.hit_rate([hbm_rows, hbm_rows + ram_rows]).tolist()
    first = distinct / max(1, curve.accesses)
    reads = max(0.0, 1 - both - first) * demand.uses_per_s
    return Offer(hbm, ram, hbm_rows, ram_rows, upper, both - upper, first, reads)
