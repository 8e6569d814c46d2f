"""A job makes the same store, model and data each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.job import Job
from ps.optimizer import OPTIMIZERS
from storage.errors import ConfigError
from worker.trainer import Schedule


def _job(tmp_path: Path) -> Job:
    return Job("synthetic:rows=1000,examples=500,features=3", tmp_path, Schedule(), ram="4MiB")


def test_every_optimizer_can_be_asked_for_by_name(tmp_path: Path) -> None:
    for name in OPTIMIZERS:
        table = replace(_job(tmp_path), optimizer=name, lr=0.25).table()
        assert (table.optimizer.name, table.optimizer.lr) == (name, 0.25)
    with pytest.raises(ConfigError, match="--optimizer"):
        replace(_job(tmp_path), optimizer="none").table()


def test_same_seed_makes_the_same_model(tmp_path: Path) -> None:
    job = _job(tmp_path)
    with job.opened() as store:
        first, second = (job.trainer(store, job.dataset()).model for _ in range(2))
        pairs = zip(first.parameters(), second.parameters(), strict=True)
        assert all(bool((a == b).all()) for a, b in pairs)


def test_dim_overrides_the_preset(tmp_path: Path) -> None:
    assert replace(_job(tmp_path), dim=8).table().dim == 8
    assert _job(tmp_path).table().dim == 16
