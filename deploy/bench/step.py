"""Measures a training step's embedding layer, with rows in this process or on servers.

Workload W: 5 M rows x 64 float32, 4096 examples x 26 ids a step, Zipf 1.05, keys hashed to 64 bits,
row-wise Adagrad: look up, backward with a constant gradient, update. Everything goes through the
public modules; over servers each step's gradients are pushed, and all are applied before the clock
stops.

Threads: one, and the prefetch thread's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

import ps
import worker
from deploy.served import Served
from storage.keys import mix_keys

BATCH, FEATURES, DIM, ALPHA = 4096, 26, 64, 1.05
_TABLE = "w"
_WRITE = 100_000
_WARM_UP = 10
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure. folder: new, for stores. servers: None for rows in this process, a number of
    servers to start here, or a list of those that run. staleness, depth: see ``terrace train``.
    """

    folder: Path
    rows: int
    steps: int
    rounds: int
    threads: int
    servers: int | str | None
    staleness: int
    depth: int

    @property
    def ram(self) -> str:
        """A budget in which all rows have room."""
        return str((1 << 29) + 400 * self.rows)


def zipf_ids(rows: int, steps: int, seed: int = 1234) -> NDArray[np.int64]:
    """(steps, BATCH * FEATURES) in [0, rows): inverse-CDF Zipf, ranks scattered."""
    rng = np.random.default_rng(seed)
    cdf = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -ALPHA)
    ranks = np.searchsorted(cdf / cdf[-1], rng.random(steps * BATCH * FEATURES))
    ids = np.random.default_rng(seed + 1).permutation(rows)[np.minimum(ranks, rows - 1)]
    return ids.astype(np.int64).reshape(steps, BATCH * FEATURES)


def bench_step(plan: Plan, say: Say) -> dict[str, Any]:
    """All figures as JSON values: see ``terrace bench step --help``."""
    say("drawing ids")
    ids = zipf_ids(plan.rows, _WARM_UP + plan.steps * plan.rounds)
    table = ps.Table(_TABLE, dim=DIM, optimizer=ps.RowWiseAdagrad(lr=0.01), init=ps.Constant(0.01))
    with ExitStack() as undo:
        store = undo.enter_context(_open(plan, table, undo, say))
        say("writing rows")
        for start in range(0, plan.rows, _WRITE):
            some = np.arange(start, min(plan.rows, start + _WRITE)).astype(np.uint64)
            rows = np.full((len(some), DIM), 0.01, np.float32)
            store.write(_TABLE, mix_keys(some), rows)
        say("training")
        seconds = _rounds(plan, store, ids)
        figures = store.tiers()[_TABLE]
    keys = BATCH * FEATURES
    return {
        "keys_per_s": keys * plan.steps / statistics.median(seconds),
        "keys_per_s_by_round": [keys * plan.steps / each for each in seconds],
        "step_ms": 1e3 * statistics.median(seconds) / plan.steps,
        "rss_bytes": psutil.Process().memory_info().rss,
        "staleness": figures.get("staleness"),
        "tiers": figures["tiers"],
    }


def _open(plan: Plan, table: ps.Table, undo: ExitStack, say: Say) -> ps.Tables:
    if plan.servers is None:
        return ps.open(plan.folder / "store", [table], ram=plan.ram, threads=plan.threads)
    addresses = plan.servers
    if isinstance(addresses, int):
        say("starting servers")
        options = ("--ram", plan.ram, "--durability", "checkpoint", "--threads", str(plan.threads))
        addresses = undo.enter_context(Served(plan.folder, addresses, options)).addresses
    return ps.connect(
        addresses, [table], mode="async", staleness=plan.staleness, ram=plan.ram,
        threads=plan.threads, job="bench",
    )  # fmt: skip


def _rounds(plan: Plan, store: ps.Tables, ids: NDArray[np.int64]) -> Sequence[float]:
    """Seconds of each round, until all that it pushed is applied."""
    bag, sparse = worker.EmbeddingBag(store, _TABLE), worker.SparseOptimizer(store)
    gradient = torch.full((BATCH * FEATURES, DIM), 0.01)
    seconds = []
    for number in range(plan.rounds + 1):
        begin = _WARM_UP + (number - 1) * plan.steps if number else 0
        some = ids[begin : _WARM_UP + number * plan.steps]
        began = time.perf_counter()
        batches = worker.prefetch(
            _batches(some), keys=lambda keys: {bag: [(keys,)]}, depth=plan.depth
        )
        for keys in batches:
            bag(keys).backward(gradient)
            sparse.step()
        store.await_steps()
        if number:
            seconds.append(time.perf_counter() - began)
    return seconds


def _batches(ids: NDArray[np.int64]) -> Iterator[torch.Tensor]:
    for batch in ids:
        yield torch.from_numpy(mix_keys(batch.view(np.uint64)).view(np.int64)).view(-1, 1)
