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
from ps.client.connection import Connection, connect_store
from ps.client.credentials import Credentials
from ps.cluster.opening import check_layout, open_partitioned
from ps.launch import Launch
from ps.optimizer import FTRL, SGD, Adagrad, Adam, RowWiseAdagrad, RowWiseAdam
from ps.settings import Settings, as_device
from ps.store import Store
from ps.table import Table
from ps.tables import Tables
from storage.budget import parse_size
from storage.initial import Constant, Normal, Uniform, Zeros
from storage.policy import DEFAULT as DEFAULT_POLICY

__all__ = [
    "FTRL",
    "SGD",
    "Adagrad",
    "Adam",
    "Constant",
    "CountMin",
    "Credentials",
    "ExactCount",
    "Normal",
    "Probability",
    "RowWiseAdagrad",
    "RowWiseAdam",
    "Store",
    "Table",
    "Tables",
    "Uniform",
    "Zeros",
    "connect",
    "open",
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
    launch: Launch | None = None,
) -> Tables:
    """Open the store in directory ``path``, or make it: all tiers in this process.

    Started by torchrun, several processes open one store together, each the owner of a part of the
    keys, in ``path/RANK-of-WORLD``: see `ps.cluster.partitioned`. Budgets are of each.

    tables: what it holds; None opens a store as it was made. ram, disk, hbm: budgets in bytes
    ("8GiB"); disk None is as far as the disk goes. hbm: a third tier on ``device``; needed when
    that is not the CPU. durability: "checkpoint" (what checkpoints and `close` made durable
    survives), "interval" (at most ``interval_seconds`` of changes are lost, beside what a cut
    takes) or "strict" (nothing is lost that returned). compact: bytes a second that compaction
    reads and writes in the background, while the file is at most a third longer than its rows
    need. threads: for kernels, None is one a core. policy: who is evicted first, one of
    `storage.policy.POLICIES`; results do not depend on it. ghost: estimate in ``store.ghost`` what
    other sizes of RAM would hit; takes 1/48 of it, 410 KiB at most. launch: this worker's place
    among several, None: as torchrun says.

    Raises: ConfigError; LockedError; MismatchError; StoreError.
    """
    settings = Settings(
        ram=parse_size(ram, "ram"),
        hbm=None if hbm is None else parse_size(hbm, "hbm"),
        disk=None if disk is None else parse_size(disk, "disk"),
        device=as_device(device),
        threads=(os.cpu_count() or 1) if threads is None else threads,
        policy=policy,
        ghost=ghost,
        durability=durability,
        interval_seconds=interval_seconds,
        compact_bytes_per_second=parse_size(compact, "compact"),
    )
    place = Launch.of(os.environ) if launch is None else launch
    if place.world > 1:
        return open_partitioned(path, tables, settings, place)
    check_layout(Path(path), 1)
    return Store(path, tables, settings)


def connect(
    servers: str | Sequence[str],
    tables: Sequence[Table],
    *,
    device: str | torch.device = "cpu",
    ram: str | int = "1GiB",
    hbm: str | int | None = None,
    mode: str = "sync",
    staleness: int = 0,
    job: str = "train",
    launch: Launch | None = None,
    credentials: Credentials | None = None,
    timeout_seconds: float = 600.0,
    push: str | int = "256MiB",
    threads: int | None = None,
    policy: str = DEFAULT_POLICY,
) -> Tables:
    """Tables on servers (`terrace serve`), one for each shard, in the order of their shards.

    servers: "host:port,host:port" or a list. device, ram, hbm: where this worker keeps copies of
    rows, and how many bytes of them: ``hbm`` where that is given (needed when ``device`` is not the
    CPU), else ``ram``. mode: "sync" is exact; with one worker it is "async" with a staleness of 0.
    In "async" the servers apply what workers push, and a copy is at most ``staleness`` steps old.
    job: workers of one job have one name in common, those of another must have another. launch:
    this worker's place among them, None: as torchrun says. credentials: None for servers without.
    timeout_seconds: how long a server that is away is waited for. push: bytes of changes that are
    kept until they are applied and durable.

    Raises: ConfigError; MismatchError; RefusedError; UnavailableError.
    """
    place = Launch.of(os.environ) if launch is None else launch
    return connect_store(
        servers, tables, place, credentials or Credentials(),
        Connection(
            device=as_device(device), size=parse_size(ram if hbm is None else hbm, "hbm"),
            on_hbm=hbm is not None, mode=mode, staleness=staleness, job=job,
            timeout_seconds=timeout_seconds, push_bytes=parse_size(push, "push"),
            threads=(os.cpu_count() or 1) if threads is None else threads, policy=policy,
        ),
    )  # fmt: skip
