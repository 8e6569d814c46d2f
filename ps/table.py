"""Table: what a user declares about one space of keys and its rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ps.admission import Admission, admission_from
from ps.optimizer import Optimizer, RowWiseAdagrad, optimizer_from
from storage.block import BlockShape
from storage.codec import codec
from storage.errors import ConfigError
from storage.initial import Initial, Uniform, initial_from
from storage.rows import Floats, Keys, Rows

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_WIDEST = 1 << 14


@dataclass(frozen=True)
class Table:
    """One table of embedding rows.

    dim: D, floats of an embedding. optimizer: decides the state that each row carries. init: the
    rows nobody has seen. dtype: of embeddings below the top tier (float32, bfloat16, float16 or
    int8); the top tier and all state are float32. rows: keys are 0 to rows - 1, or None for any
    64-bit id. seed: of the initial rows. admission: which keys earn a row in training, None for all
    (see `ps.admission`). Raises: ConfigError naming the argument.

    >>> Table("ads", dim=64).width
    65
    """

    name: str
    dim: int
    optimizer: Optimizer = field(default_factory=RowWiseAdagrad)
    init: Initial = field(default_factory=lambda: Uniform(0.01))
    dtype: str = "float32"
    rows: int | None = None
    seed: int = 0
    admission: Admission | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"table name: expected 1 to 64 of A-Z a-z 0-9 _ . -, got {self.name!r}"
            )
        if not self.dim >= 1 or self.width > _WIDEST:
            raise ConfigError(
                f"table {self.name!r}: dim {self.dim} makes rows of {self.width} floats with "
                f"their state, expected dim of at least 1 and at most {_WIDEST} floats"
            )
        if self.rows is not None and not 1 <= self.rows <= 2**64:
            raise ConfigError(f"table {self.name!r}: rows is {self.rows}, expected 1 to 2**64")
        codec(self.dtype)

    @property
    def state_width(self) -> int:
        """S, floats of optimizer state in a row."""
        return self.optimizer.state_width(self.dim)

    @property
    def width(self) -> int:
        """W, floats of a row: the embedding, then the state."""
        return self.dim + self.state_width

    @cached_property
    def shape(self) -> BlockShape:
        """How rows lie in blocks."""
        return BlockShape(self.dim, self.state_width, codec(self.dtype))

    def fresh(self, keys: Keys) -> Floats:
        """The rows that ``keys`` have before anybody changes them: (U, W) float32.

        A pure function of seed, table name and key. keys: (U,) uint64.
        """
        values = np.empty((len(keys), self.width), np.float32)
        values[:, : self.dim] = self.init.rows(self.seed, self.name, keys, self.dim)
        values[:, self.dim :] = self.optimizer.initial_state
        return values

    def new_rows(self, keys: Keys, embeddings: Floats, step: int) -> Rows:
        """Dirty rows of these embeddings with initial state; of a key given twice the last counts.

        keys: (N,) uint64. embeddings: (N, D) float32. Raises: ConfigError when they do not match.
        """
        if embeddings.shape != (len(keys), self.dim):
            raise ConfigError(
                f"write: table {self.name!r} expected embeddings of shape ({len(keys)}, "
                f"{self.dim}), got {embeddings.shape}"
            )
        unique, last = np.unique(keys[::-1], return_index=True)
        rows = Rows.empty(len(unique), self.width)
        rows.keys[:] = unique
        rows.values[:, : self.dim] = embeddings[::-1][last]
        rows.values[:, self.dim :] = self.optimizer.initial_state
        rows.steps[:] = step
        rows.dirty[:] = True
        return rows

    def describe(self) -> dict[str, Any]:
        """The table as JSON values; `table_from` makes an equal one of them."""
        admission = {} if self.admission is None else {"admission": self.admission.describe()}
        return {
            "name": self.name, "dim": self.dim, "optimizer": self.optimizer.describe(),
            "init": self.init.describe(), "dtype": self.dtype, "rows": self.rows,
            "seed": self.seed, **admission,
        }  # fmt: skip


def table_from(description: Mapping[str, Any]) -> Table:
    """The table that `Table.describe` described. Raises: ConfigError."""
    admission = description.get("admission")
    return Table(
        name=description["name"],
        dim=description["dim"],
        optimizer=optimizer_from(description["optimizer"]),
        init=initial_from(description["init"]),
        dtype=description["dtype"],
        rows=description["rows"],
        seed=description["seed"],
        admission=None if admission is None else admission_from(admission),
    )
