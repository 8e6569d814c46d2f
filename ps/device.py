"""The optimizers' arithmetic as torch operations: for rows on any device.

The same formulas in the same order as the row functions of `ps/update.py`, one torch operation for
each of theirs, so that a compiler finds nothing to fuse into a multiply-add: on CPU tensors the
bits are those of the host kernels; on other devices they are as good as the device's square root
and division. No atomics and no reduction whose order is torch's to choose: the same input gives
the same bits, also when rows are applied in other company.

Nothing here waits for the device. Threads: no state; the rows named by ``positions`` belong to the
caller for the time of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ps.lanes import LANES
from ps.optimizer import FTRL, SGD, Adagrad, Adam, Optimizer, RowWiseAdagrad, RowWiseAdam

Form = Callable[[Sequence[float], Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def apply_tensors(
    optimizer: Optimizer,
    embeddings: Tensor,
    state: Tensor,
    positions: Tensor,
    gradients: Tensor,
    *,
    lr: float,
    step: int,
    scale: float | Tensor = 1.0,
) -> Tensor:
    """Applies merged gradients in place; returns which were skipped: (U,) bool, on the device.

    embeddings: (C, D) float32; state: (C, S) float32; positions: (U,) int64, unique; gradients:
    (U, D) float32; all on one device. lr, step: of this step, step 1 the first. scale: multiplies
    every gradient first; a number, or a float32 tensor without dimensions where the host does not
    know it. A row whose scaled gradient holds NaN or infinity is skipped: it does not change.
    Raises ConfigError for a rate or step that cannot be meant.
    """
    hyper = optimizer.hyper(lr=lr, step=step).tolist()
    old, old_state = embeddings.index_select(0, positions), state.index_select(0, positions)
    scaled = gradients * scale
    new, new_state = _FORMS[optimizer.kind](hyper, old, old_state, scaled)
    finite = scaled.isfinite().all(dim=1, keepdim=True)
    embeddings.index_copy_(0, positions, torch.where(finite, new, old))
    state.index_copy_(0, positions, torch.where(finite, new_state, old_state))
    return ~finite.squeeze(1)


def merge_tensors(
    inverse: Tensor,
    bags: Tensor,
    weights: Tensor | None,
    gradient: Tensor,
    unique_count: int,
) -> Tensor:
    """The gradients of each unique row's accesses, summed in batch order: (U, D) float32.

    inverse, bags: (N,) integers, the unique row and the bag of each access; weights: (N,) float32,
    each access's factor, None for 1; gradient: (bags, D) float32; all on one device. What
    `gradient.group` and `gradient.merge` do on the host. Takes N x D floats of memory meanwhile.
    """
    if inverse.numel() == 0:
        return gradient.new_zeros((unique_count, gradient.shape[1]))
    # index_add_ would need no sort, but adds with atomics on CUDA, in any order.
    sorted_rows, order = inverse.sort(stable=True)
    starts = torch.searchsorted(
        sorted_rows, torch.arange(unique_count + 1, device=inverse.device, dtype=inverse.dtype)
    )
    accesses = gradient.index_select(0, bags.index_select(0, order))
    if weights is not None:
        accesses = accesses * weights.index_select(0, order).unsqueeze(1)
    return torch.segment_reduce(accesses, "sum", offsets=starts, axis=0, initial=0, unsafe=True)


def _mean_of_squares(gradient: Tensor) -> Tensor:
    """(U, 1), in the order of `lanes.sum_of_squares`.

    torch's own sum chooses its order by the shape of the whole batch.
    """
    count, dim = gradient.shape
    squares = gradient.new_zeros((count, -(-dim // LANES) * LANES))
    torch.mul(gradient, gradient, out=squares[:, :dim])
    lanes = squares[:, :LANES]
    for start in range(LANES, squares.shape[1], LANES):
        lanes = lanes + squares[:, start : start + LANES]
    while (half := lanes.shape[1] // 2) > 0:
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes * float(torch.tensor(1.0 / dim, dtype=torch.float32))


def _root(values: Tensor) -> Tensor:
    # torch's float32 root on the CPU is off by a unit for one value in six; a float64 one, rounded,
    # is IEEE's. CUDA's float32 root is IEEE's as it stands.
    return values.sqrt() if values.is_cuda else values.double().sqrt().float()


def _quotient(number: float, divisor: Tensor) -> Tensor:
    # `number / tensor` is the reciprocal times the number in torch: rounded twice.
    return torch.full_like(divisor, number) / divisor


def _sgd(hyper: Sequence[float], w: Tensor, state: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    lr, decay = hyper[:2]
    return w - (g + w * decay) * lr, state


def _adagrad(hyper: Sequence[float], w: Tensor, state: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    lr, eps = hyper[:2]
    total = state + g * g
    return w - g / (_root(total) + eps) * lr, total


def _row_wise_adagrad(
    hyper: Sequence[float], w: Tensor, state: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    lr, eps = hyper[:2]
    total = state + _mean_of_squares(g)
    return w - g * _quotient(lr, _root(total) + eps), total


def _adam(hyper: Sequence[float], w: Tensor, state: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    lr, first, second, eps = hyper[:4]
    m, v = state.chunk(2, dim=1)
    m = m + (g - m) * first
    v = v + (g * g - v) * second
    return w - m / (_root(v) + eps) * lr, torch.cat((m, v), dim=1)


def _row_wise_adam(
    hyper: Sequence[float], w: Tensor, state: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    lr, first, second, eps, correction = hyper[:5]
    m, v = state[:, :-1], state[:, -1:]
    v = v + (_mean_of_squares(g) - v) * second
    m = m + (g - m) * first
    return w - m * _quotient(lr, _root(v * correction) + eps), torch.cat((m, v), dim=1)


def _ftrl(hyper: Sequence[float], w: Tensor, state: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    per_lr, beta, l1, l2 = hyper[:4]
    z, n = state.chunk(2, dim=1)
    total = n + g * g
    root = _root(total)
    z = z + (g - (root - _root(n)) * per_lr * w)
    excess = (z.abs() - l1).clamp_min(0).copysign(z)
    return -excess / ((root + beta) * per_lr + l2), torch.cat((z, total), dim=1)


_FORMS: dict[int, Form] = {
    SGD.kind: _sgd,
    Adagrad.kind: _adagrad,
    RowWiseAdagrad.kind: _row_wise_adagrad,
    Adam.kind: _adam,
    RowWiseAdam.kind: _row_wise_adam,
    FTRL.kind: _ftrl,
}
