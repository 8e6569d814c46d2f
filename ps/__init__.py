"""Terrace's parameter server: tables of embedding rows that live on several tiers.

>>> import tempfile, numpy, ps
>>> ads = ps.Table("ads", dim=4, optimizer=ps.SGD(lr=0.1), init=ps.Zeros())
>>> with tempfile.TemporaryDirectory() as folder, ps.open(folder, [ads], ram="4MiB") as store:
...     store.write("ads", numpy.array([7]), numpy.ones((1, 4)))
...     store.read("ads", numpy.array([7, 8])).tolist()
[[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ps.admission import CountMin, ExactCount, Probability
from ps.optimizer import FTRL, SGD, Adagrad, Adam, RowWiseAdagrad, RowWiseAdam
from ps.settings import Settings
from ps.store import Store
from ps.table import Table
from storage.budget import parse_size
from storage.errors import ConfigError
from storage.initial import Constant, Normal, Uniform, Zeros
from storage.policy import DEFAULT as DEFAULT_POLICY

__all__ = [
    "FTRL", "SGD", "Adagrad", "Adam", "Constant", "CountMin", "ExactCount", "Normal", "Probability",
    "RowWiseAdagrad", "RowWiseAdam", "Store", "Table", "Uniform", "Zeros", "open",
]  # fmt: skip


def open(
    path: str | Path,
    tables: Sequence[Table] | None = None,
    *,
    ram: str | int = "1GiB",
    disk: str | int | None = None,
    device: str | torch.device = "cpu",
    hbm: str | int | None = None,
    durability: str = "checkpoint",
    interval_seconds: float = 1.0,
    compact: str | int = "64MiB",
    threads: int | None = None,
    policy: str = DEFAULT_POLICY,
    ghost: bool = False,
) -> Store:
    """Open the store in directory ``path``, or make it: all tiers in this process.

    tables: what it holds; None opens a store as it was made. ram, disk, hbm: budgets in bytes
    ("8GiB"); disk None is as far as the disk goes. hbm: a third tier on ``device``; needed when
    that is not the CPU. durability: "checkpoint" (what checkpoints and `close` made durable
    survives), "interval" (at most ``interval_seconds`` of changes are lost, beside what a cut
    takes) or "strict" (nothing is lost that returned). compact: bytes a second that compaction
    reads and writes in the background, while the file is at most a third longer than its rows
    need. threads: for kernels, None is one a core. policy: who is evicted first, one of
    `storage.policy.POLICIES`; results do not depend on it. ghost: estimate in ``store.ghost`` what
    other sizes of RAM would hit; takes 1/48 of it, 410 KiB at most.

    Raises: ConfigError; LockedError; MismatchError; StoreError.
    """
    try:
        on = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device: expected 'cpu' or 'cuda', got {device!r}") from error
    settings = Settings(
        ram=parse_size(ram, "ram"),
        hbm=None if hbm is None else parse_size(hbm, "hbm"),
        disk=None if disk is None else parse_size(disk, "disk"),
        device=on,
        threads=(os.cpu_count() or 1) if threads is None else threads,
        policy=policy,
        ghost=ghost,
        durability=durability,
        interval_seconds=interval_seconds,
        compact_bytes_per_second=parse_size(compact, "compact"),
    )
    return Store(path, tables, settings)
