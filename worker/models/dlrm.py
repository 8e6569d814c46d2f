"""DLRM's dense part (Naumov et al., arXiv 1906.00091): two MLPs and the interaction between them.

The embeddings come in pooled, (B, F, D), so the model does not know where their rows live, and
attribution methods can treat it as a plain function of (dense, pooled). It returns logits: the
reference's final sigmoid is the caller's, as `torch.nn.BCEWithLogitsLoss` wants it.

Threads: as any `torch.nn.Module`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from storage.errors import ConfigError

Interaction = Literal["dot", "cat"]


@dataclass(frozen=True)
class Architecture:
    """The shape of a DLRM, in the terms of the reference's flags.

    ``tables``: pooled embeddings an example, F. ``bottom``: widths of the bottom MLP, the number of
    dense features first, the embedding dim D last. ``top``: widths of the top MLP without its
    input, which follows from the interaction; the last is 1. ``itself``: a dot interaction also has
    each vector's product with itself.

    Raises ConfigError when the widths do not fit together.
    """

    tables: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    interaction: Interaction = "dot"
    itself: bool = False

    def __post_init__(self) -> None:
        if self.tables < 1 or min((*self.bottom, *self.top), default=0) < 1:
            raise ConfigError(
                f"DLRM with {self.tables} tables and widths {self.bottom}, {self.top}, expected "
                "positive numbers"
            )
        if len(self.bottom) < 2:
            raise ConfigError(
                f"DLRM bottom widths {self.bottom}, expected at least the number of dense features "
                "and the embedding dim, such as (13, 512, 16)"
            )
        if not self.top or self.top[-1] != 1:
            raise ConfigError(
                f"DLRM top widths {self.top}, expected the last to be 1, the logit; append it"
            )
        if self.interaction not in get_args(Interaction):
            raise ConfigError(
                f"DLRM interaction {self.interaction!r}, expected 'dot' or 'cat'; "
                "set Architecture.interaction"
            )

    @property
    def dense(self) -> int:
        """Dense features an example, I."""
        return self.bottom[0]

    @property
    def dim(self) -> int:
        """The width D of the pooled embeddings, and of the bottom MLP's output."""
        return self.bottom[-1]

    @property
    def interaction_width(self) -> int:
        """The top MLP's input: D and one number a pair of vectors for dot, all lanes for cat."""
        vectors = self.tables + 1
        if self.interaction == "cat":
            return vectors * self.dim
        return self.dim + vectors * (vectors + (1 if self.itself else -1)) // 2


class DLRM(nn.Module):
    """The dense part of DLRM; its parameters start as the reference's do.

    Every linear layer n -> m draws weights from N(0, sqrt(2 / (m + n))) and biases from
    N(0, sqrt(1 / m)) of ``random``, weight before bias, bottom before top. With the state that the
    reference's generator has after its embedding tables, the parameters are equal to the bit.

    Source: arXiv 1906.00091 and its public implementation.
    """

    pairs: Tensor

    def __init__(self, architecture: Architecture, random: np.random.RandomState) -> None:
        super().__init__()
        self.architecture = architecture
        self.bottom = _mlp(architecture.bottom, random)
        self.bottom.append(nn.ReLU())
        self.top = _mlp((architecture.interaction_width, *architecture.top), random)
        # Not part of the state: it follows from the architecture.
        self.register_buffer("pairs", _pairs(architecture), persistent=False)

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """The logits (B,) float32 of a batch.

        dense: (B, I) float32; pooled: (B, F, D) float32, F vectors in the order of the tables.
        """
        logits: Tensor = self.top(self.interact(self.bottom(dense), pooled))
        return logits.squeeze(1)

    def interact(self, bottom: Tensor, pooled: Tensor) -> Tensor:
        """The top MLP's input (B, interaction_width).

        bottom: (B, D), put before the pooled embeddings (B, F, D) as vector 0. ``dot``: bottom,
        then the products of vectors (1,0) (2,0) (2,1) (3,0) ..., the lower triangle row by row.
        ``cat``: all vectors.
        """
        vectors = torch.cat([bottom.unsqueeze(1), pooled], dim=1)
        if self.architecture.interaction == "cat":
            return vectors.flatten(1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        # Not products[:, i, j], whose backward sorts the indices on CUDA. As they are distinct, the
        # backward of index_select adds once to each place, so its bits do not depend on timing.
        return torch.cat([bottom, products.index_select(1, self.pairs)], dim=1)


def _pairs(architecture: Architecture) -> Tensor:
    """Where the wanted products lie in the flattened (F + 1, F + 1) matrix of all."""
    vectors = architecture.tables + 1
    matrix = torch.arange(vectors * vectors).reshape(vectors, vectors)
    wanted = torch.ones_like(matrix).tril(0 if architecture.itself else -1)
    return matrix[wanted.bool()]


def _mlp(widths: tuple[int, ...], random: np.random.RandomState) -> nn.Sequential:
    """Linear layers of the given widths with ReLU between them, none after the last."""
    layers = nn.Sequential()
    for n, m in pairwise(widths):
        if len(layers):
            layers.append(nn.ReLU())
        linear = nn.utils.skip_init(nn.Linear, n, m)
        with torch.no_grad():
            linear.weight.copy_(_normal(random, np.sqrt(2 / (m + n)), (m, n)))
            linear.bias.copy_(_normal(random, np.sqrt(1 / m), (m,)))
        layers.append(linear)
    return layers


def _normal(random: np.random.RandomState, deviation: float, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(random.normal(0.0, deviation, shape).astype(np.float32))
