"""Recommender: embedding rows of a store below a dense model, from a batch to logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ps.tables import Tables
from storage.errors import ConfigError
from worker.bag import EmbeddingBag
from worker.data.batch import Batch
from worker.models.dlrm import DLRM, Architecture, Interaction


@dataclass(frozen=True)
class Preset:
    """Widths of a DLRM's layers by name. dim: D of the embeddings. bottom: hidden widths of the
    bottom MLP, whose output is D wide. top: of the top MLP, whose output is one logit.
    """

    dim: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    interaction: Interaction = "dot"

    def architecture(self, dense: int, features: int) -> Architecture:
        """The DLRM for data with this many dense values and categorical features."""
        widths = (max(1, dense), *self.bottom, self.dim)
        return Architecture(features, widths, (*self.top, 1), self.interaction)


PRESETS: dict[str, Preset] = {
    "small": Preset(16, (64,), (64, 32)),
    "kaggle": Preset(16, (512, 256, 64), (512, 256)),
    "terabyte": Preset(64, (512, 256), (512, 512, 256)),
}
"""small: for laptops. kaggle, terabyte: of the DLRM reference (see the papers in README)."""


def preset(name: str) -> Preset:
    """A preset by name. Raises: ConfigError naming those there are."""
    if name not in PRESETS:
        raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


class Recommender(nn.Module):
    """DLRM over one table: every bag of a batch is pooled from it, then the dense part.

    Threads: the one that trains.
    """

    def __init__(self, store: Tables, table: str, architecture: Architecture, *, seed: int) -> None:
        super().__init__()
        self.bag = EmbeddingBag(store, table, include_last_offset=True)
        self.dlrm = DLRM(architecture, np.random.RandomState(seed)).to(store.device)

    def forward(self, batch: Batch) -> Tensor:
        """Logits: (B,) float32 on the store's device."""
        rows = self.bag(batch.ids, batch.offsets)
        # Not the batch's own count of features, which none shows that has no examples.
        pooled = rows.view(batch.size, self.dlrm.architecture.tables, rows.shape[1])
        logits: Tensor = self.dlrm(_dense(batch).to(pooled.device), pooled)
        return logits


def _dense(batch: Batch) -> Tensor:
    """Dense values, or a constant where the data has none: DLRM has a bottom MLP in any case."""
    return batch.dense if batch.dense.shape[1] else torch.ones((batch.size, 1))
