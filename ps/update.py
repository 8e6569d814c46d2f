"""The optimizers' arithmetic on the host: merged gradients applied to rows where they lie.

One kernel knows all optimizers by `Optimizer.kind`. To add one: its class in `ps/optimizer.py`, a
row function and a branch of `_apply_merged` here, and its tensor form in `ps/device.py`.

What is promised of the bits. All arithmetic is float32, in the order written here, without fused
multiply-add or fastmath; the square root and the division are IEEE's. A row's result depends on
its own gradient, state and constants alone, so the unique rows may be cut into ranges and spread
over threads in any way. The sum over a row's floats has a fixed order too
(`lanes.sum_of_squares`). `ps/device.py` computes in the same order.

Threads: kernels release the GIL; calls on disjoint ranges may run at once, for positions are
unique. An array is written only at those positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ps.gradient import add_accesses, are_finite
from ps.lanes import LANES, root, sum_of_squares
from ps.optimizer import FTRL, SGD, Adagrad, Adam, RowWiseAdagrad, RowWiseAdam
from storage.kernel import fetch_item, fetch_row, inlined, keep, kernel, unowned

AHEAD = 4
"""Rows between asking for a row and updating it; 2 to 16 measure alike."""

_SGD, _ADAGRAD, _ROW_WISE_ADAGRAD = SGD.kind, Adagrad.kind, RowWiseAdagrad.kind
_ADAM, _ROW_WISE_ADAM, _FTRL = Adam.kind, RowWiseAdam.kind, FTRL.kind


@kernel
def apply_rows(
    kind: int,
    hyper: Any,
    step: int,
    scale: float,
    embeddings: Any,
    state: Any,
    steps: Any,
    dirty: Any,
    positions: Any,
    gradients: Any,
    begin: int,
    end: int,
) -> int:
    """Applies merged gradients u from ``begin`` to below ``end``; returns how many were skipped.

    kind, hyper: of the `Optimizer`; hyper is (8,) float32 for this step. step: 1 for the first.
    scale: multiplies every gradient first, as float32. embeddings: (C, D) float32; state: (C, S)
    float32; steps: (C,) uint32; dirty: (C,) uint8 or bool; all changed in place at the positions.
    positions: (U,) int64, unique. gradients: (U, D) float32, scaled copies are made of its rows.

    A row whose scaled gradient holds NaN or infinity is skipped: nothing of it changes.
    """
    rows = unowned((embeddings, state, steps, dirty))
    owner = _scratch(embeddings.shape[1])
    (scratch,) = unowned((owner,))
    skipped = 0
    for u in range(begin, end):
        if u + AHEAD < end:
            _fetch(rows, positions[u + AHEAD])
        for d in range(embeddings.shape[1]):
            scratch[0, d] = gradients[u, d]
        skipped += _apply_merged(kind, hyper, step, scale, rows, positions[u], scratch)
    keep(owner)
    return skipped


@kernel
def apply_bags(
    kind: int,
    hyper: Any,
    step: int,
    scale: float,
    embeddings: Any,
    state: Any,
    steps: Any,
    dirty: Any,
    positions: Any,
    starts: Any,
    order: Any,
    bags: Any,
    weights: Any,
    gradient: Any,
    begin: int,
    end: int,
) -> int:
    """`gradient.merge` and `apply_rows` in one, with the same bits and without a (U, D) buffer.

    starts, order, bags, weights, gradient: as in `gradient.merge`. The rest, and the number of
    skipped rows that is returned, as in `apply_rows`.
    """
    rows = unowned((embeddings, state, steps, dirty))
    record = unowned((order, bags, weights, gradient))
    owner = _scratch(embeddings.shape[1])
    (scratch,) = unowned((owner,))
    skipped = 0
    for u in range(begin, end):
        if u + AHEAD < end:
            _fetch(rows, positions[u + AHEAD])
        for d in range(embeddings.shape[1]):
            scratch[0, d] = np.float32(0)
        add_accesses(scratch, 0, starts[u], starts[u + 1], record)
        skipped += _apply_merged(kind, hyper, step, scale, rows, positions[u], scratch)
    keep(owner)
    return skipped


@inlined
def _fetch(rows: Any, p: Any) -> None:
    embeddings, state, steps, dirty = rows
    fetch_row(embeddings, p)
    fetch_row(state, p)
    fetch_item(steps, p)
    fetch_item(dirty, p)


@inlined
def _apply_merged(
    kind: int, hyper: Any, step: int, scale: float, rows: Any, p: Any, scratch: Any
) -> int:
    """Scales ``scratch[0]`` and applies it to the row at ``p``; 1 if it was skipped, else 0."""
    embeddings, state, steps, dirty = rows
    gradient = scratch[0]
    factor = np.float32(scale)
    for d in range(embeddings.shape[1]):
        gradient[d] *= factor
    squares = sum_of_squares(gradient)
    # NaN or infinity makes the sum so. Large finite numbers may too: only then each is looked at.
    if not squares < np.inf and not are_finite(gradient.view(np.int32), 0, gradient.shape[0]):
        return 1
    # Multiplied by 1 / D: torch divides by a number in this way on CUDA.
    mean = squares * np.float32(1.0 / embeddings.shape[1])
    if kind == _ROW_WISE_ADAGRAD:
        _row_wise_adagrad(hyper, embeddings, state, p, gradient, mean)
    elif kind == _SGD:
        _sgd(hyper, embeddings, p, gradient)
    elif kind == _ADAGRAD:
        _adagrad(hyper, embeddings, state, p, gradient)
    elif kind == _ADAM:
        _adam(hyper, embeddings, state, p, gradient)
    elif kind == _ROW_WISE_ADAM:
        _row_wise_adam(hyper, embeddings, state, p, gradient, mean)
    elif kind == _FTRL:
        _ftrl(hyper, embeddings, state, p, gradient)
    steps[p] = step
    dirty[p] = 1
    return 0


@inlined
def _scratch(dim: int) -> Any:
    """(1, P) float32 for one gradient, with zeros behind it up to a multiple of LANES."""
    return np.zeros((1, (dim + LANES - 1) // LANES * LANES), np.float32)


# The row functions. gradient: (P,) float32, D floats and zeros behind them; mean: of its squares.
# Each reads its constants first, in the order of the optimizer's `_constants`: a load inside a loop
# that stores cannot leave it.


@inlined
def _sgd(hyper: Any, embeddings: Any, p: Any, gradient: Any) -> None:
    lr, decay = hyper[0], hyper[1]
    for d in range(embeddings.shape[1]):
        w = embeddings[p, d]
        embeddings[p, d] = w - lr * (gradient[d] + decay * w)


@inlined
def _adagrad(hyper: Any, embeddings: Any, state: Any, p: Any, gradient: Any) -> None:
    lr, eps = hyper[0], hyper[1]
    for d in range(embeddings.shape[1]):
        g = gradient[d]
        total = state[p, d] + g * g
        state[p, d] = total
        embeddings[p, d] -= lr * (g / (root(total) + eps))


@inlined
def _row_wise_adagrad(
    hyper: Any, embeddings: Any, state: Any, p: Any, gradient: Any, mean: Any
) -> None:
    lr, eps = hyper[0], hyper[1]
    total = state[p, 0] + mean
    state[p, 0] = total
    rate = lr / (root(total) + eps)
    for d in range(embeddings.shape[1]):
        embeddings[p, d] -= rate * gradient[d]


@inlined
def _adam(hyper: Any, embeddings: Any, state: Any, p: Any, gradient: Any) -> None:
    lr, first, second, eps = hyper[0], hyper[1], hyper[2], hyper[3]
    dim = embeddings.shape[1]
    for d in range(dim):
        g, m, v = gradient[d], state[p, d], state[p, dim + d]
        m += first * (g - m)
        v += second * (g * g - v)
        state[p, d] = m
        state[p, dim + d] = v
        embeddings[p, d] -= lr * (m / (root(v) + eps))


@inlined
def _row_wise_adam(
    hyper: Any, embeddings: Any, state: Any, p: Any, gradient: Any, mean: Any
) -> None:
    lr, first, second, eps, correction = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]
    dim = embeddings.shape[1]
    v = state[p, dim]
    v += second * (mean - v)
    state[p, dim] = v
    rate = lr / (root(v * correction) + eps)
    for d in range(dim):
        m = state[p, d]
        m += first * (gradient[d] - m)
        state[p, d] = m
        embeddings[p, d] -= rate * m


@inlined
def _ftrl(hyper: Any, embeddings: Any, state: Any, p: Any, gradient: Any) -> None:
    per_lr, beta, l1, l2 = hyper[0], hyper[1], hyper[2], hyper[3]
    dim = embeddings.shape[1]
    for d in range(dim):
        g, z, n = gradient[d], state[p, d], state[p, dim + d]
        w = embeddings[p, d]  # as a fourth above, it would go through memory: 5 times as slow
        total = n + g * g
        new_root = root(total)
        z += g - (new_root - root(n)) * per_lr * w
        state[p, d] = z
        state[p, dim + d] = total
        # No branch: |z| <= l1 leaves an excess of 0.
        excess = np.copysign(max(abs(z) - l1, np.float32(0)), z)
        embeddings[p, d] = -excess / ((beta + new_root) * per_lr + l2)
