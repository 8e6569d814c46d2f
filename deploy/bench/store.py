"""Measures the SSD tier beside its device and its peers: appends, random reads, space, opening.

Everything takes turns in rounds, and figures are medians of rounds, since machines are noisy. Files
are dropped from the page cache before they are read, and a round asks for at most a tenth of the
blocks, so that what was read before hardly ever helps.

Threads: one.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bench.device import plain_appends, read_rates, uncache
from deploy.bench.holder import (
    BUFFER_BYTES,
    Terrace,
    installed_peers,
    open_holder,
)
from storage.budget import show_size
from storage.compaction import Compaction
from storage.errors import DiskFullError
from storage.rows import Keys

BATCH = 16_384
_PEER_SHARE = 8
_TIMES_OVER = 3
# The store, a plain file of a round, and peers and overwriting at an eighth each.
_DISK_SHARE = 3.0

Say = Callable[[str], None]


@dataclass
class Plan:
    """What to measure. folder: on the disk to measure, empty. reads: rows read in each round."""

    folder: Path
    rows: int
    dim: int
    rounds: int
    reads: int
    peers: bool
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    @property
    def row_bytes(self) -> int:
        """Of a key, a step and an embedding."""
        return 12 + 4 * self.dim


def ensure_fits(plan: Plan) -> None:
    """Raises: DiskFullError when the disk has no room for all that is written."""
    needed, free = _DISK_SHARE * plan.rows * plan.row_bytes, shutil.disk_usage(plan.folder).free
    if free < needed:
        raise DiskFullError(
            f"{plan.folder}: expected {show_size(int(needed))} free, found {show_size(free)}; "
            f"measure fewer --rows, or another disk with --dir"
        )


def bench_store(plan: Plan, say: Say) -> dict[str, Any]:
    """All figures as JSON values: see ``terrace bench store --help``. Raises: DiskFullError."""
    figures = _append(plan, say)
    figures |= _open(plan, say)
    figures |= _read(plan, say)
    if plan.peers:
        figures["peers"] = {name: _peer(plan, name, say) for name in installed_peers()}
        figures["row_store_rows_per_s"] = figures["peers"]["lmdb, a row an entry"][
            "append_rows_per_s"
        ]
    figures |= _overwrite(plan, say)
    return figures


def _batches(plan: Plan, count: int) -> Sequence[Keys]:
    """Keys 0 to below ``count`` in no order, in batches."""
    keys = plan.rng.permutation(count).astype(np.uint64)
    return np.split(keys, range(BATCH, count, BATCH))


def _values(plan: Plan, keys: Keys) -> np.ndarray[Any, Any]:
    return np.broadcast_to(keys.astype(np.float32)[:, None], (len(keys), plan.dim))


def _fill(holder: Any, plan: Plan, batches: Sequence[Keys]) -> float:
    """Seconds that appending and syncing takes."""
    started = time.perf_counter()
    for keys in batches:
        holder.append(keys, _values(plan, keys))
    holder.sync()
    return time.perf_counter() - started


def _written(folder: Path) -> int:
    """Bytes written to the device that a folder lies on, by anybody; 0 where none counts them.

    What the system counts for a process is too much: a page of a large folio counts as all of it.
    """
    device = folder.stat().st_dev
    counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return 512 * int(counters.read_text().split()[6]) if counters.exists() else 0


def _append(plan: Plan, say: Say) -> dict[str, Any]:
    rates, plain, shares = [], [], []
    with closing(open_holder(Terrace.name, plan.folder / "store", plan.dim, plan.rows)) as holder:
        assert isinstance(holder, Terrace)
        batches = _batches(plan, plan.rows)
        written = 0
        for i, some in enumerate(np.array_split(np.arange(len(batches)), plan.rounds)):
            part = [batches[j] for j in some]
            say(f"appending, round {i + 1} of {plan.rounds}")
            before = _written(plan.folder)
            rows = sum(map(len, part))
            rates.append(rows / _fill(holder, plan, part))
            written += _written(plan.folder) - before
            size = rows * plan.row_bytes
            plain.append(plain_appends(plan.folder / "plain", size, BUFFER_BYTES))
            shares.append(rates[-1] * plan.row_bytes / plain[-1])
        used = holder.log.used_bytes
        index = holder.tier.report()["index_bytes_per_row"]
    return {
        "append_rows_per_s": statistics.median(rates),
        "plain_file_bytes_per_s": statistics.median(plain),
        "append_fraction": statistics.median(shares),
        # A file system in memory counts no bytes.
        "write_amplification": (written or used) / (plan.rows * plan.row_bytes),
        "index_bytes_per_row": index,
    }


def _open(plan: Plan, say: Say) -> dict[str, Any]:
    """Rows a second that opening takes in. The first time is left out: kernels are loaded then."""
    seconds = []
    for i in range(plan.rounds + 1):
        say(f"opening, round {i + 1} of {plan.rounds + 1}")
        started = time.perf_counter()
        open_holder(Terrace.name, plan.folder / "store", plan.dim, plan.rows).close()
        seconds.append(time.perf_counter() - started)
    return {"open_rows_per_s": plan.rows / statistics.median(seconds[1:])}


def _read(plan: Plan, say: Say) -> dict[str, Any]:
    rates, fractions = [], []
    best: dict[int, list[float]] = {}
    with closing(open_holder(Terrace.name, plan.folder / "store", plan.dim, plan.rows)) as holder:
        holder.read(np.arange(1, dtype=np.uint64))
        for i in range(plan.rounds):
            say(f"reading, round {i + 1} of {plan.rounds}")
            depths = read_rates(holder.file, plan.reads, 1000 * i)
            for depth, rate in depths.items():
                best.setdefault(depth, []).append(rate)
            uncache(holder.file)
            rates.append(_read_rate(holder, plan, plan.rows))
            fractions.append(rates[-1] / max(depths.values()))
    return {
        "read_rows_per_s": statistics.median(rates),
        "device_read_iops": max(statistics.median(found) for found in best.values()),
        "read_fraction": statistics.median(fractions),
        "device_read_iops_by_depth": {d: statistics.median(found) for d, found in best.items()},
    }


def _read_rate(holder: Any, plan: Plan, rows: int) -> float:
    # One row in 150: of the blocks, which hold 15, a tenth.
    count = min(plan.reads, rows // 150)
    keys = plan.rng.choice(rows, count, replace=False).astype(np.uint64)
    started = time.perf_counter()
    for start in range(0, len(keys), BATCH):
        piece = keys[start : start + BATCH]
        values = holder.read(piece)
        assert (values[:, 0] == piece.astype(np.float32)).all(), f"{holder.name}: wrong rows"
    return len(keys) / (time.perf_counter() - started)


def _peer(plan: Plan, name: str, say: Say) -> dict[str, Any]:
    rows, folder = max(BATCH, plan.rows // _PEER_SHARE), plan.folder / name.split()[0].strip(",")
    say(f"{name}: appending")
    with closing(open_holder(name, folder, plan.dim, rows)) as holder:
        seconds = _fill(holder, plan, _batches(plan, rows))
    say(f"{name}: reading")
    rates = []
    for _ in range(plan.rounds):
        uncache(holder.file)
        with closing(open_holder(name, folder, plan.dim, rows)) as holder:
            rates.append(_read_rate(holder, plan, rows))
    return {"append_rows_per_s": rows / seconds, "read_rows_per_s": statistics.median(rates)}


def _overwrite(plan: Plan, say: Say) -> dict[str, Any]:
    """Bytes written and held when all rows are overwritten at random again and again."""
    rows = max(BATCH, plan.rows // _PEER_SHARE)
    holder = open_holder(Terrace.name, plan.folder / "overwritten", plan.dim, rows)
    assert isinstance(holder, Terrace)
    tier = holder.tier
    with closing(holder):
        compaction = Compaction(tier, nullcontext)

        def overwrite(times: int) -> None:
            for i in range(times * rows // BATCH):
                say(f"overwriting, {i * BATCH / rows:.1f} of {times} times")
                keys = plan.rng.choice(rows, BATCH, replace=False).astype(np.uint64)
                holder.append(keys, _values(plan, keys))
                while compaction.excess and compaction.step(lambda: 1 << 62):
                    pass
                holder.sync()
                tier.free([tier.end])

        _fill(holder, plan, _batches(plan, rows))
        overwrite(_TIMES_OVER)
        before, given, moved = _written(plan.folder), tier.stats.rows_written, tier.stats.rows_moved
        overwrite(_TIMES_OVER)
        given, moved = tier.stats.rows_written - given, tier.stats.rows_moved - moved
        written = _written(plan.folder) - before
        return {
            "write_amplification_overwriting": (
                written / (given * plan.row_bytes) if written else 1 + moved / given
            ),
            "rows_written_over_rows_given": 1 + moved / given,
            "space_amplification": holder.log.file_bytes / (rows * plan.row_bytes),
        }
