"""The recommender: the pieces fit for any data, also without dense values."""

from __future__ import annotations

from pathlib import Path

import torch

import ps
from worker.data.batch import Batch
from worker.recommender import PRESETS, Recommender


def test_data_without_dense_values_has_logits_and_gradients(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ps.Table("t", dim=16)], ram="4MiB") as store:
        model = Recommender(store, "t", PRESETS["small"].architecture(0, 2), seed=0)
        batch = Batch(torch.ones(3), torch.zeros(3, 0), torch.arange(6), torch.arange(7))
        logits = model(batch)
        assert logits.shape == (3,)
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert len(store.waiting["t"]) == 1
        store.waiting.clear()


def test_every_preset_fits_criteo(tmp_path: Path) -> None:
    for name, preset in PRESETS.items():
        table = ps.Table("t", dim=preset.dim)
        with ps.open(tmp_path / name, [table], ram="4MiB") as store:
            model = Recommender(store, "t", preset.architecture(13, 26), seed=0).eval()
            batch = Batch(torch.ones(2), torch.zeros(2, 13), torch.arange(52), torch.arange(53))
            assert model(batch).shape == (2,)
