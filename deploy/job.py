"""Job: everything a training run is made from, and how its parts are put together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import ps
from ps.admission import Admission
from ps.launch import Launch
from ps.optimizer import OPTIMIZERS
from storage.budget import parse_size
from storage.errors import ConfigError
from storage.policy import DEFAULT as DEFAULT_POLICY
from worker.data import open_dataset
from worker.data.dataset import Dataset
from worker.group import Group
from worker.recommender import Preset, Recommender, preset
from worker.trainer import Schedule, Trainer

TABLE = "features"
"""Name of the one table that a run's features share; a key names feature and value."""


@dataclass(frozen=True)
class Job:
    """One training run as the command line describes it. launch: which of its workers this is."""

    data: str
    store: Path
    schedule: Schedule
    test_data: str | None = None
    holdout: float = 0.1
    bad_lines: Literal["stop", "skip"] = "stop"
    ram: str = "1GiB"
    hbm: str | None = None
    disk: str | None = None
    device: str = "cpu"
    durability: str = "checkpoint"
    policy: str = DEFAULT_POLICY
    ghost: bool = False
    preset: str = "small"
    dim: int | None = None
    optimizer: str = "rowwise_adagrad"
    lr: float = 0.05
    dtype: str = "float32"
    seed: int = 0
    threads: int | None = None
    admission: Admission | None = None
    servers: str | None = None
    mode: str = "sync"
    staleness: int = 0
    name: str = "train"
    tls: Path | None = None
    token: Path | None = None
    server_timeout: float = 600.0
    push: str = "256MiB"
    launch: Launch = Launch()  # noqa: RUF009 - a value, never changed

    @property
    def shared(self) -> bool:
        """Whether rows are at servers, or at several workers."""
        return self.servers is not None or self.launch.world > 1

    def dataset(self) -> Dataset:
        """The data, opened; a few lines are read."""
        return open_dataset(
            self.data, test=self.test_data, holdout=self.holdout, bad_lines=self.bad_lines,
            seed=self.seed,
        )  # fmt: skip

    def table(self) -> ps.Table:
        """The one table of the run. Raises: ConfigError."""
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"--optimizer: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        optimizer: Any = OPTIMIZERS[self.optimizer]
        return ps.Table(
            TABLE, dim=self._preset.dim, optimizer=optimizer(lr=self.lr), dtype=self.dtype,
            seed=self.seed, admission=self.admission,
        )  # fmt: skip

    @contextmanager
    def opened(self) -> Iterator[ps.Tables]:
        """The store, closed at the end; of several workers after they have met."""
        if self.servers is not None:
            with self._connected(self.servers) as remote:
                yield remote
            return
        with ps.open(
            self.store, [self.table()], ram=parse_size(self.ram, "--ram"),
            disk=None if self.disk is None else parse_size(self.disk, "--disk"),
            hbm=None if self.hbm is None else parse_size(self.hbm, "--hbm"),
            device=self.launch.device(self.device), durability=self.durability, policy=self.policy,
            threads=self.threads, ghost=self.ghost, launch=self.launch,
        ) as store:  # fmt: skip
            yield store

    def _connected(self, servers: str) -> ps.Tables:
        """The store whose rows servers have."""
        credentials = ps.Credentials() if self.tls is None else ps.Credentials.in_folder(self.tls)
        if self.token is not None:
            credentials = replace(credentials, token=self.token)
        return ps.connect(
            servers, [self.table()], device=self.launch.device(self.device),
            ram=parse_size(self.ram, "--ram"),
            hbm=None if self.hbm is None else parse_size(self.hbm, "--hbm"),
            mode=self.mode, staleness=self.staleness, job=self.name, launch=self.launch,
            credentials=credentials, timeout_seconds=self.server_timeout,
            push=parse_size(self.push, "--push"), threads=self.threads, policy=self.policy,
        )  # fmt: skip

    def group(self) -> Group:
        """The workers of the run, met; to be closed."""
        return Group(self.launch, device=self.launch.device(self.device))

    def trainer(self, store: ps.Tables, dataset: Dataset, group: Group | None = None) -> Trainer:
        """A trainer at step 0. Sets seed and number of threads, so that results repeat."""
        torch.manual_seed(self.seed)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        shape = self._preset.architecture(len(dataset.dense_names), len(dataset.feature_names))
        model = Recommender(store, TABLE, shape, seed=self.seed)
        return Trainer(store, model, dataset, self.schedule, group)

    @property
    def _preset(self) -> Preset:
        chosen = preset(self.preset)
        if self.dim is None:
            return chosen
        return Preset(self.dim, chosen.bottom, chosen.top, chosen.interaction)
