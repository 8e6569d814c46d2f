"""EmbeddingBagCollection: many features, several tables, one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ps.tables import Tables
from storage.errors import ConfigError, MismatchError
from storage.keys import as_keys
from worker.bag import find_staged
from worker.input import Bags
from worker.lookup import Use, evaluated, pooled
from worker.pooling import check_mode


class KeyedJagged(Protocol):
    """What is asked of the input: torchrec's KeyedJaggedTensor has it, and anybody may.

    Values and lengths are feature-major: all bags of the first key, then of the second, and so on.
    """

    def keys(self) -> Sequence[str]:
        """Names of the features."""
        ...

    def values(self) -> Tensor:
        """(N,) integers: the ids of all bags."""
        ...

    def lengths(self) -> Tensor:
        """(F * B,) integers: ids in each bag."""
        ...


@dataclass(frozen=True)
class Jagged:
    """A plain `KeyedJagged`: names (F,), ids (N,), sizes (F * B,) and factors (N,) or None."""

    names: Sequence[str]
    ids: Tensor
    sizes: Tensor
    factors: Tensor | None = None

    def keys(self) -> Sequence[str]:
        """Names of the features."""
        return self.names

    def values(self) -> Tensor:
        """(N,) integers, feature-major."""
        return self.ids

    def lengths(self) -> Tensor:
        """(F * B,) integers, feature-major."""
        return self.sizes

    def weights_or_none(self) -> Tensor | None:
        """(N,) float32, each id's factor, or None."""
        return self.factors


class Keyed:
    """Pooled vectors by feature: what torchrec's KeyedTensor offers for reading."""

    def __init__(self, names: Sequence[str], parts: Sequence[Tensor]) -> None:
        self._names, self._parts = list(names), list(parts)

    def keys(self) -> list[str]:
        """Names of the features, in order."""
        return self._names

    def values(self) -> Tensor:
        """(B, sum of the features' D) float32, features side by side."""
        return torch.cat(self._parts, dim=1)

    def to_dict(self) -> dict[str, Tensor]:
        """(B, D) float32 by feature."""
        return dict(zip(self._names, self._parts, strict=True))

    def length_per_key(self) -> list[int]:
        """D of each feature."""
        return [part.shape[1] for part in self._parts]

    def __getitem__(self, name: str) -> Tensor:
        return self.to_dict()[name]


class EmbeddingBagCollection(nn.Module):
    """One call for all categorical features.

    features: which table each feature looks up in; features may share one. mode: "sum", "mean" or
    "max" for all. Each table is asked once a call, whatever the number of its features.

    Threads: the one that trains. Raises: ConfigError for an unknown table or mode.
    """

    def __init__(self, store: Tables, features: Mapping[str, str], *, mode: str = "sum") -> None:
        super().__init__()
        check_mode(mode)
        unknown = sorted(set(features.values()) - set(store.tables))
        if unknown or not features:
            raise ConfigError(
                f"features: expected tables among {sorted(store.tables)}, got {unknown}"
            )
        self.store = store
        self.mode = mode
        self.features = dict(features)

    def forward(self, features: KeyedJagged) -> Keyed:
        """Pooled rows of every feature of ``features``: (B, D) float32 each.

        Weights are taken from ``features.weights_or_none()`` where it exists (mode "sum" only).

        Raises: ConfigError for features the collection does not know; as `EmbeddingBag`.
        """
        layout = _Layout.of(features, self.features)
        weights = layout.weights(features)
        if weights and self.mode != "sum":
            raise ConfigError(f"weights: expected mode 'sum', got {self.mode!r}")
        parts: dict[str, Tensor] = {}
        for table, pooled_rows in self._pooled(features, layout, weights):
            names = layout.names[table]
            split = pooled_rows.view(len(names), layout.batch, pooled_rows.shape[1])
            parts |= {name: split[i] for i, name in enumerate(names)}
        order = list(features.keys())
        return Keyed(order, [parts[name] for name in order])

    def prepare(self, features: KeyedJagged) -> list[tuple[str, Bags]]:
        """One lookup a table; for the prefetch loop."""
        return _Layout.of(features, self.features).lookups(features)

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds: which table each feature uses, never rows."""
        return {"features": self.features}

    def set_extra_state(self, state: Any) -> None:
        """Raises: MismatchError when the state is of other features."""
        if dict(state) != self.get_extra_state():
            raise MismatchError(
                f"EmbeddingBagCollection: the state has features {dict(state).get('features')}, "
                f"expected {self.features}"
            )

    def _pooled(
        self, features: KeyedJagged, layout: _Layout, weights: dict[str, Tensor]
    ) -> list[tuple[str, Tensor]]:
        if not (self.training and torch.is_grad_enabled()):
            return [
                (table, evaluated(self.store, table, self.mode, bags,
                                  bags.weights(weights.get(table))))
                for table, bags in self.prepare(features)
            ]  # fmt: skip
        staged = find_staged(self, (features,))
        found = []
        for number, (table, _) in enumerate(staged.call.lookups):
            use = Use.of(self.store, self.mode, staged, number, weights.get(table))
            found.append((table, pooled(use, weights.get(table))))
        return found


@dataclass(frozen=True)
class _Layout:
    """Where each table's bags lie in a jagged input. names: a table's features, in input order."""

    names: dict[str, list[str]]
    numbers: dict[str, list[int]]
    batch: int
    ends: np.ndarray

    @staticmethod
    def of(features: KeyedJagged, tables: Mapping[str, str]) -> _Layout:
        order = list(features.keys())
        unknown = [name for name in order if name not in tables]
        if unknown or not order:
            raise ConfigError(f"features: expected some of {sorted(tables)}, got also {unknown}")
        sizes = features.lengths().detach().cpu().numpy().astype(np.int64, copy=False)
        if len(sizes) % len(order) or (sizes < 0).any():
            raise ConfigError(
                f"lengths: expected {len(order)} features times a batch of sizes, got {len(sizes)}"
            )
        names: dict[str, list[str]] = {}
        numbers: dict[str, list[int]] = {}
        for number, name in enumerate(order):
            names.setdefault(tables[name], []).append(name)
            numbers.setdefault(tables[name], []).append(number)
        ends = np.concatenate(([0], np.cumsum(sizes)))
        if ends[-1] != features.values().numel():
            raise ConfigError(
                f"lengths: expected a sum of {features.values().numel()}, the number of ids, "
                f"got {ends[-1]}"
            )
        return _Layout(names, numbers, len(sizes) // len(order), ends)

    def lookups(self, features: KeyedJagged) -> list[tuple[str, Bags]]:
        keys = as_keys(features.values())
        found = []
        for table, numbers in self.numbers.items():
            runs = [self._run(number) for number in numbers]
            sizes = np.concatenate([np.diff(self._edges(number)) for number in numbers])
            starts = np.concatenate(([0], np.cumsum(sizes)))
            some = keys[runs[0]] if len(runs) == 1 else np.concatenate([keys[run] for run in runs])
            found.append((table, Bags(some, starts, None)))
        return found

    def weights(self, features: KeyedJagged) -> dict[str, Tensor]:
        """Factors of each table's accesses, differentiable; empty without weights."""
        given = getattr(features, "weights_or_none", lambda: None)()
        if given is None:
            return {}
        return {
            table: torch.cat([given[self._run(number)] for number in numbers])
            for table, numbers in self.numbers.items()
        }

    def _edges(self, number: int) -> np.ndarray:
        return self.ends[number * self.batch : (number + 1) * self.batch + 1]

    def _run(self, number: int) -> slice:
        edges = self._edges(number)
        return slice(int(edges[0]), int(edges[-1]))
