"""Studies: a trace against policies and sizes, access by access or batch by batch.

Rates are of accesses. The first access to a key misses whatever the cache, so it is told apart: of
the others, the share that hits says how good cache and policy are.

A sample keeps the keys whose mixed key is below a threshold and shrinks the caches as much (a
miniature simulation: Waldspurger et al., "Cache modeling and optimization using miniature
simulations", ATC 2017); what the sample is short of the expected accesses goes to the hits, as in
SHARDS-adj.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from storage.errors import ConfigError, WorkingSetError
from storage.keys import mix_keys
from storage.policies.belady import make_belady, next_uses
from storage.policy import POLICIES, Policy
from storage.rehearsal import Batches, Rehearsal, batches_of
from storage.replay import Replay
from storage.rows import Keys, Positions
from worker.data.trace import Trace

BELADY = "belady"
KNOWN = (*POLICIES, BELADY)
"""The policies to choose from; belady is the best possible, since it knows the future."""

Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """One policy at one size. capacity: rows of all tiers together. hits, first_seen: accesses, in
    a sample estimates. accesses_per_s: how fast the replay was, in accesses that were replayed.
    tiers: of a replay by batches, the counters of each; ssd_reads: rows that came from below.
    """

    policy: str
    capacity: int
    accesses: int
    hits: int
    first_seen: int
    accesses_per_s: float
    ssd_reads: int | None = None
    tiers: tuple[dict[str, Any], ...] = ()

    @property
    def hit_rate(self) -> float:
        """Hits of all accesses."""
        return self.hits / self.accesses

    @property
    def again_rate(self) -> float:
        """Hits of the accesses to keys that had been seen before."""
        return self.hits / max(1, self.accesses - self.first_seen)

    def report(self) -> dict[str, Any]:
        """As JSON values."""
        rates = {"hit_rate": self.hit_rate, "hit_rate_seen_before": self.again_rate}
        return {**asdict(self), "misses": self.accesses - self.hits, **rates}


@dataclass(frozen=True, eq=False)
class Accesses:
    """A trace in memory, or a sample of one.

    keys: (N,) uint64. edges: (B+1,) int64 where batches begin, None without batches. total:
    accesses of the whole trace. distinct: different keys here. rate: the share of keys kept.
    """

    keys: Keys
    edges: Positions | None
    total: int
    distinct: int
    rate: float

    @property
    def keys_estimate(self) -> int:
        """Different keys of the whole trace."""
        return round(self.distinct / self.rate)


def load(trace: Trace, *, batch: int | None, rate: float, watch: Watch) -> Accesses:
    """Read a trace.

    batch: accesses of a batch where the trace has none of its own; None: no batches. rate: of the
    keys to keep, 1 for all. Raises: ConfigError; what `Trace.pieces` raises.
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"--sample: expected a share above 0, at most 1, got {rate}")
    kept, numbers, total = [], [], 0
    for piece in trace.pieces():
        batches = piece.batches
        if batches is None and batch is not None:
            batches = np.arange(total, total + len(piece)) // batch
        total += len(piece)
        chosen = slice(None) if rate == 1 else mix_keys(piece.keys) < np.uint64(rate * 2.0**64)
        kept.append(piece.keys[chosen])
        if batches is not None:
            numbers.append(batches[chosen])
        watch(total, 0)
    keys = np.concatenate(kept)
    if not len(keys):
        raise ConfigError(f"--sample: expected a share that leaves keys over, got {rate}")
    edges = None
    if batch is not None:
        joined = np.concatenate(numbers)
        edges = np.concatenate(([0], 1 + np.flatnonzero(np.diff(joined)), [len(keys)]))
    return Accesses(keys, edges, total, len(np.unique(keys)), rate)


@dataclass(frozen=True)
class Plan:
    """What to replay. tiers: of each cache the rows of its tiers, the top one first; by batches if
    ``by_batch``, with ``depth`` batches ahead."""

    policies: tuple[str, ...]
    tiers: tuple[tuple[int, ...], ...]
    by_batch: bool = False
    depth: int = 0


def check_policies(names: str) -> tuple[str, ...]:
    """Policies from a list with commas; "all" is all of them. Raises: ConfigError."""
    chosen = KNOWN if names == "all" else tuple(name.strip() for name in names.split(","))
    unknown = [name for name in chosen if name not in KNOWN]
    if unknown:
        raise ConfigError(
            f"--policy: expected some of {', '.join(KNOWN)}, or all, got {unknown[0]!r}"
        )
    return tuple(dict.fromkeys(chosen))


def study(accesses: Accesses, plan: Plan, watch: Watch) -> Iterator[Result]:
    """One result after the other. Sizes are of the whole trace, also with a sample.

    Raises: ConfigError where a batch does not fit into the smallest top tier.
    """
    jobs = [(policy, tiers) for policy in plan.policies for tiers in plan.tiers]
    working_sets = _working_sets(accesses) if plan.by_batch else None
    for number, (policy, tiers) in enumerate(jobs):
        watch(number, len(jobs))
        small = [max(1, round(size * accesses.rate)) for size in tiers]
        if working_sets is None:
            result = _access_by_access(accesses, policy, sum(small))
        else:
            result = _batch_by_batch(accesses, working_sets, policy, small, plan.depth)
        yield _scaled(result, accesses, sum(tiers))
    watch(len(jobs), len(jobs))


def _access_by_access(accesses: Accesses, name: str, capacity: int) -> Result:
    keys = accesses.keys
    policy: str | Policy = name
    if name == BELADY:
        codes = np.unique(keys, return_inverse=True)[1]
        nexts = next_uses(codes, accesses.distinct)
        policy = Policy.of(make_belady(capacity, len(keys), nexts), capacity)
    replay = Replay(policy, capacity)
    replay.run(keys[:0])  # compiles
    began = time.perf_counter()
    hits = replay.run(keys)
    speed = len(keys) / (time.perf_counter() - began)
    return Result(name, capacity, len(keys), hits, accesses.distinct, speed)


def _working_sets(accesses: Accesses) -> Batches:
    assert accesses.edges is not None
    return batches_of(accesses.keys, accesses.edges)


def _batch_by_batch(
    accesses: Accesses, working_sets: Batches, name: str, sizes: Sequence[int], depth: int
) -> Result:
    distinct = accesses.distinct
    if name == BELADY:
        rehearsal = Rehearsal.best(sum(sizes), working_sets, distinct=distinct, depth=depth)
    else:
        rehearsal = Rehearsal(sizes, name, distinct=distinct, depth=depth)
    began = time.perf_counter()
    try:
        rehearsal.run(working_sets)
    except WorkingSetError as error:
        raise ConfigError(
            f"a batch needs {working_sets.largest} rows at once, more than the {sizes[0]} of the "
            f"top tier; give a larger size or smaller batches (--batch)"
        ) from error
    speed = len(accesses.keys) / (time.perf_counter() - began)
    tiers = tuple({"tier": c.name, "rows": c.limit, **c.stats.report()} for c in rehearsal.caches)
    hits = sum(cache.stats.access_hits for cache in rehearsal.caches)
    below = rehearsal.beyond.stats
    tiers += ({"tier": rehearsal.beyond.name, **below.report()},)
    first = rehearsal.first_seen.accesses
    reads = below.rows_read
    return Result(name, sum(sizes), len(accesses.keys), hits, first, speed, reads, tiers)


def _scaled(result: Result, accesses: Accesses, capacity: int) -> Result:
    """What a sample says of the whole trace."""
    if accesses.rate == 1:
        return replace(result, capacity=capacity)
    rate, expected = accesses.rate, accesses.total * accesses.rate
    hits = max(0.0, result.hits + expected - len(accesses.keys)) / rate
    reads = None if result.ssd_reads is None else round(result.ssd_reads / rate)
    return replace(
        result, capacity=capacity, accesses=accesses.total, hits=min(accesses.total, round(hits)),
        first_seen=round(result.first_seen / rate), ssd_reads=reads,
    )  # fmt: skip
