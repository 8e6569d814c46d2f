"""Lookup: one differentiable use of a table, from ids to pooled vectors.

Forward makes the rows resident (or finds them staged by the prefetch loop) and pools them where
they are. Backward leaves a `ps.record.Record` for the step. Evaluation reads through copies and
changes nothing.

Threads: the thread that trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from ps.gradient import all_finite
from ps.record import Record
from ps.tables import Tables
from ps.workingset import Hold, Part
from storage.errors import ConfigError
from storage.rows import Floats, Positions
from worker.call import Staged
from worker.input import Bags
from worker.pooling import pool_max, pool_mean, pool_sum, pool_tensors, weight_gradients

_NONE = np.empty(0, np.float32)
_EVAL_ACCESSES = 1 << 16
_KERNELS: dict[str, Callable[..., Any]] = {"sum": pool_sum, "mean": pool_mean, "max": pool_max}


@dataclass(slots=True)
class Use:
    """What one forward pass leaves for its backward.

    rows: (C, D) float32 that has the batch's rows. places: (N,) int64, where each access's is.
    """

    store: Tables
    table: str
    mode: str
    bags: Bags
    part: Part
    inverse: NDArray[np.int32]
    weights: Floats
    hold: Hold
    rows: Tensor
    places: Positions
    argmax: NDArray[np.int32] | None = None

    @staticmethod
    def of(store: Tables, mode: str, staged: Staged, number: int, weights: Tensor | None) -> Use:
        """Of lookup ``number`` of a call that is staged."""
        working_set = staged.working_set
        hold = working_set.hold()  # before anything can fail
        table, bags = staged.call.lookups[number]
        inverse = staged.inverses[number]
        rows, places = store.rows_of(working_set, table)
        return Use(
            store, table, mode, bags, working_set.parts[table], inverse, bags.weights(weights),
            hold, rows, places[inverse],
        )  # fmt: skip


def anchor(store: Tables, table: str) -> Tensor:
    """The tensor through which autograd reaches a table; its grad counts backward passes.

    A leaf without meaning of its own, no parameter of any module. Backward adds 1 to its grad, or
    infinity when the gradient is not finite, so that what scales or inspects gradients of an
    optimizer (GradScaler, clipping) scales and inspects the table's.
    """
    if table not in store.anchors:
        store.anchors[table] = torch.zeros((), device=store.device, requires_grad=True)
    return store.anchors[table]


def pooled(use: Use, per_sample_weights: Tensor | None) -> Tensor:
    """(bags, D) float32 on the store's device, differentiable."""
    table = anchor(use.store, use.table)
    out = _Pooled.apply(table, per_sample_weights, use)  # type: ignore[no-untyped-call]
    assert isinstance(out, Tensor)
    return out


def evaluated(store: Tables, table: str, mode: str, bags: Bags, weights: Floats) -> Tensor:
    """The same figures from copies of the rows: nothing is inserted, counted, moved or evicted."""
    pieces, ranges = [], _pieces(bags.starts)
    rounds = store.most(len(ranges))
    for begin, end in ranges:
        first, last = bags.starts[begin], bags.starts[end]
        values = store.read(table, bags.keys[first:last])
        places = np.arange(last - first)
        some = weights[first:last] if len(weights) else _NONE
        starts = bags.starts[begin : end + 1] - first
        pieces.append(_pool_host(values, places, starts, some, mode, store)[0])
    for _ in range(rounds - len(ranges)):
        store.read(table, np.empty(0, np.int64))  # others have more to read
    dim = store.tables[table].dim
    joined = torch.cat(pieces) if pieces else torch.zeros((0, dim))
    return joined.to(store.device)


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, per_sample_weights: Tensor | None, use: Use) -> Tensor:
        ctx.use = use
        if per_sample_weights is not None:
            ctx.weights = (per_sample_weights.shape, per_sample_weights.dtype)
        args = (use.places, use.bags.starts, use.weights)
        if use.rows.device.type == "cpu":
            out, use.argmax = _pool_host(use.rows.numpy(), *args, use.mode, use.store)
        else:
            out, use.argmax = pool_tensors(use.rows, *args, use.mode)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        use: Use = ctx.use
        if not use.hold.active:
            raise ConfigError(
                "backward: the step (or zero_grad) that used this graph is done and its rows may "
                "have left; run forward again"
            )
        gradient = gradients[0].detach().contiguous()
        finite = _finite(gradient)
        slopes = None
        if ctx.needs_input_grad[1]:
            slopes = _weight_gradient(use, gradient, ctx.weights)
        use.store.waiting.setdefault(use.table, []).append(_record(use, gradient, finite))
        count = torch.full((), 1.0 if finite else torch.inf, device=use.store.device)
        return count, slopes, None


def _pool_host(
    rows: Floats,
    places: Positions,
    starts: NDArray[np.int64],
    weights: Floats,
    mode: str,
    store: Tables,
) -> tuple[Tensor, NDArray[np.int32] | None]:
    out = np.empty((len(starts) - 1, rows.shape[1]), np.float32)
    argmax = np.empty(out.shape, np.int32) if mode == "max" else None
    extra = weights if argmax is None else argmax
    store.pool.run(_KERNELS[mode], len(out), rows, places, starts, extra, out)
    return torch.from_numpy(out), argmax


def _record(use: Use, gradient: Tensor, finite: bool) -> Record:
    weights = use.weights
    if use.mode == "mean":
        sizes = np.diff(use.bags.starts)
        weights = (np.float32(1) / np.repeat(sizes, sizes).astype(np.float32)).astype(np.float32)
    return Record(
        use.part.positions, use.inverse, use.bags.bag_of(), weights, gradient,
        use.argmax, (use.hold,), finite,
    )  # fmt: skip


def _finite(gradient: Tensor) -> bool:
    if gradient.device.type == "cpu":
        return all_finite(gradient.numpy())
    return bool(gradient.isfinite().all())


def _weight_gradient(use: Use, gradient: Tensor, given: tuple[torch.Size, torch.dtype]) -> Tensor:
    """Gradient of per_sample_weights in their own shape and dtype, 0 for padding."""
    slopes = np.empty(len(use.bags.keys), np.float32)
    bags, places = use.bags.bag_of(), use.places
    if use.rows.device.type != "cpu":
        chosen = torch.from_numpy(places).to(gradient.device)
        which = torch.from_numpy(bags.astype(np.int64)).to(gradient.device)
        slopes[:] = (use.rows[chosen] * gradient[which]).sum(1).cpu().numpy()
    else:
        args = (use.rows.numpy(), places, bags, gradient.numpy(), slopes)
        use.store.pool.run(weight_gradients, len(slopes), *args)
    full = np.zeros(given[0].numel(), np.float32)
    full[slice(None) if use.bags.kept is None else use.bags.kept] = slopes
    return torch.from_numpy(full).view(given[0]).to(gradient.device, given[1])


def _pieces(starts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of bags of at most 65,536 accesses (or one bag, if it is larger)."""
    ranges, begin, count = [], 0, len(starts) - 1
    while begin < count:
        end = int(np.searchsorted(starts, starts[begin] + _EVAL_ACCESSES, side="right")) - 1
        end = min(max(end, begin + 1), count)
        ranges.append((begin, end))
        begin = end
    return ranges
