"""EmbeddingBag: torch.nn.EmbeddingBag over a table of a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ps.tables import Tables
from storage.errors import ConfigError, MismatchError
from worker.call import Call, Caller, Staged, ask, stage
from worker.input import Bags, bags_of
from worker.lookup import Use, evaluated, pooled
from worker.pooling import check_mode


class EmbeddingBag(nn.Module):
    """Bags of ids to one vector each, by the call forms of torch.nn.EmbeddingBag.

    Any number of modules may share a table; its rows learn by the table's optimizer, once a step of
    `worker.SparseOptimizer`. In eval mode, or without gradients, nothing in the store changes: an
    unseen id gets its initial row, and no row is inserted, counted or evicted.

    Threads: the one that trains. Raises: ConfigError for an unknown table or mode.
    """

    def __init__(
        self,
        store: Tables,
        table: str,
        *,
        mode: str = "sum",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        check_mode(mode)
        if table not in store.tables:
            raise ConfigError(f"table {table!r}: expected one of {sorted(store.tables)}")
        self.store = store
        self.table = table
        self.mode = mode
        self.include_last_offset = include_last_offset
        self.embedding_dim = store.tables[table].dim
        self.num_embeddings = store.tables[table].rows
        self.padding_idx = _padding(table, self.num_embeddings, padding_idx)

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Pooled rows: (bags, D) float32 on the store's device.

        input: ids, integers: (N,) with ``offsets`` (bags,), or (bags, L) without.
        per_sample_weights: as ``input``, floats, with mode "sum" only; differentiable while
        training. ``padding_idx`` ids count for nothing; empty bags are zeros. In a table of fixed
        size a negative ``padding_idx`` counts from the end, as in torch; elsewhere it is an id.

        Raises: KeyRangeError; WorkingSetError before anything has changed; CorruptError.
        """
        self._check_weights(input, per_sample_weights)
        if not (self.training and torch.is_grad_enabled()):
            bags = self.prepare(input, offsets)[0][1]
            weights = bags.weights(per_sample_weights)
            return evaluated(self.store, self.table, self.mode, bags, weights)
        staged = find_staged(self, (input, offsets))
        use = Use.of(self.store, self.mode, staged, 0, per_sample_weights)
        return pooled(use, per_sample_weights)

    def prepare(self, input: Tensor, offsets: Tensor | None = None) -> list[tuple[str, Bags]]:
        """The one lookup that a call makes; for the prefetch loop."""
        last, padding = self.include_last_offset, self.padding_idx
        bags = bags_of(input, offsets, include_last_offset=last, padding_idx=padding)
        return [(self.table, bags)]

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds: a reference to the table, never its rows."""
        return {"table": self.table, "dim": self.embedding_dim}

    def set_extra_state(self, state: Any) -> None:
        """Raises: MismatchError when the reference is to another table."""
        if dict(state) != self.get_extra_state():
            raise MismatchError(
                f"EmbeddingBag: the state refers to {dict(state)}, expected "
                f"{self.get_extra_state()}; rows are in the store, load its checkpoint instead"
            )

    def extra_repr(self) -> str:
        """Shown by print(module)."""
        return f"table={self.table!r}, dim={self.embedding_dim}, mode={self.mode!r}"

    def _check_weights(self, ids: Tensor, weights: Tensor | None) -> None:
        if weights is None:
            return
        if self.mode != "sum":
            raise ConfigError(f"per_sample_weights: expected mode 'sum', got {self.mode!r}")
        if weights.shape != ids.shape:
            raise ConfigError(
                f"per_sample_weights: expected the ids' shape {tuple(ids.shape)}, "
                f"got {tuple(weights.shape)}"
            )


def find_staged(module: Caller, arguments: Sequence[Any]) -> Staged:
    """The call as the prefetch loop staged it, or else staged now."""
    store = module.store
    store.planner.ensure_usable()
    for staged in store.staged:
        assert isinstance(staged, Staged)
        if staged.call.is_for(module, arguments):
            return staged
    if not store.prefetching:
        store.settle()
    calls = [Call.of(module, tuple(arguments))]
    return stage(store, calls, ask(store, calls))[0]


def _padding(table: str, rows: int | None, index: int | None) -> int | None:
    """The id that means padding, or None."""
    if rows is None or index is None:
        return index
    if not -rows <= index < rows:
        raise ConfigError(
            f"padding_idx: expected {-rows} to {rows - 1} for table {table!r}, got {index}"
        )
    return index % rows
