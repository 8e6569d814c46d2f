"""Commits: with one worker a checkpoint is its store's; several are in test_partitioned.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ps.cluster.commits import Commits
from storage.errors import ConfigError, StoreError
from tests.ps.cluster.alone import alone
from tests.ps.cluster.crew import open_whole


def test_it_goes_back_to_what_was_made(tmp_path: Path) -> None:
    with alone(tmp_path) as exchange, open_whole(tmp_path / "store") as own:
        commits = Commits(own, exchange)
        assert commits.step == -1
        with pytest.raises(StoreError, match="found none"):
            commits.go_back()
        for step in (0, 3, 5):
            own.write("ads", np.array([1]), np.full((1, 4), float(step)))
            commits.make(step, {"layer": torch.full((2,), float(step))})
        assert commits.step == 5 and own.checkpoints == [3, 5]
        with pytest.raises(ConfigError, match="expected a step after 5"):
            commits.make(5, {})
        own.write("ads", np.array([1]), np.full((1, 4), 9.0))
        step, state = Commits(own, exchange).go_back()
        assert step == 5 and state["layer"].tolist() == [5.0, 5.0]
        assert own.read("ads", np.array([1]))[0, 0] == 5.0
