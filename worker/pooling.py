"""Pooling: bags of rows to one vector each, straight from the arrays of the top tier.

Kernels for the host, torch operations for other devices. A sum begins with a bag's first access
and adds the others in order. An empty bag is zeros. Threads: kernels release the GIL; disjoint
ranges of bags may run at once and give the same bits as one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import ConfigError
from storage.kernel import fetch_row, inlined, kernel, unowned

MODES = ("sum", "mean", "max")
_AHEAD = 8


def check_mode(mode: str) -> None:
    """Raises: ConfigError unless ``mode`` is one of `MODES`."""
    if mode not in MODES:
        raise ConfigError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")


@kernel
def pool_sum(
    embeddings: Any, positions: Any, starts: Any, weights: Any, out: Any, begin: int, end: int
) -> None:
    """Sum of each bag's rows, bags ``begin`` to below ``end``.

    embeddings: (C, D) float32. positions: (N,) int64 by access. starts: (bags + 1,) int64.
    weights: (N,) float32 by access, (0,) for 1. out: (bags, D) float32, written.
    """
    rows, places, edges, factors, sums = unowned((embeddings, positions, starts, weights, out))
    for bag in range(begin, end):
        first, last = edges[bag], edges[bag + 1]
        if first == last:
            for d in range(sums.shape[1]):
                sums[bag, d] = np.float32(0)
        for n in range(first, last):
            _fetch_ahead(rows, places, n)
            _add(sums, bag, n > first, rows, places[n], factors, n)


@inlined
def _add(sums: Any, bag: Any, more: Any, rows: Any, place: Any, factors: Any, n: Any) -> None:
    """Adds one row to a bag's sum, or begins the sum with it (half the time for bags of one)."""
    weight = np.float32(1)
    if factors.shape[0] > 0:
        weight = factors[n]
    if more:
        for d in range(sums.shape[1]):
            sums[bag, d] += weight * rows[place, d]
    elif factors.shape[0] > 0:
        for d in range(sums.shape[1]):
            sums[bag, d] = weight * rows[place, d]
    else:
        for d in range(sums.shape[1]):
            sums[bag, d] = rows[place, d]


@kernel
def pool_mean(
    embeddings: Any, positions: Any, starts: Any, weights: Any, out: Any, begin: int, end: int
) -> None:
    """Mean of each bag's rows; as `pool_sum`, without weights (pass (0,))."""
    pool_sum(embeddings, positions, starts, weights, out, begin, end)
    (sums,) = unowned((out,))
    for bag in range(begin, end):
        count = np.float32(starts[bag + 1] - starts[bag])
        if count > 1:
            for d in range(sums.shape[1]):
                sums[bag, d] /= count


@kernel
def pool_max(
    embeddings: Any, positions: Any, starts: Any, argmax: Any, out: Any, begin: int, end: int
) -> None:
    """Maximum of each bag's rows, float by float, and the access it came from.

    argmax: (bags, D) int32, written: the first access with the maximum, -1 in an empty bag.
    """
    rows, places, edges, best, values = unowned((embeddings, positions, starts, argmax, out))
    for bag in range(begin, end):
        for d in range(values.shape[1]):
            values[bag, d] = np.float32(0)
            best[bag, d] = -1
        for n in range(edges[bag], edges[bag + 1]):
            _fetch_ahead(rows, places, n)
            for d in range(values.shape[1]):
                value = rows[places[n], d]
                if best[bag, d] < 0 or value > values[bag, d]:
                    values[bag, d] = value
                    best[bag, d] = n


@kernel
def weight_gradients(
    embeddings: Any, positions: Any, bags: Any, gradient: Any, out: Any, begin: int, end: int
) -> None:
    """Gradient of each access's weight: its row times its bag's gradient, accesses begin to end.

    bags: (N,) int32. gradient: (bags, D) float32. out: (N,) float32, written.
    """
    rows, places, slopes = unowned((embeddings, positions, gradient))
    for n in range(begin, end):
        total = np.float64(0)
        for d in range(slopes.shape[1]):
            total += np.float64(rows[places[n], d]) * np.float64(slopes[bags[n], d])
        out[n] = np.float32(total)


@inlined
def _fetch_ahead(rows: Any, places: Any, n: Any) -> None:
    if n + _AHEAD < places.shape[0]:
        fetch_row(rows, places[n + _AHEAD])


def pool_tensors(
    embeddings: Tensor,
    positions: NDArray[np.int64],
    starts: NDArray[np.int64],
    weights: NDArray[np.float32],
    mode: str,
) -> tuple[Tensor, NDArray[np.int32] | None]:
    """The same on any device with torch operations: (pooled (bags, D), argmax for mode max)."""
    device = embeddings.device
    places, offsets = torch.from_numpy(positions).to(device), torch.from_numpy(starts).to(device)
    factors = torch.from_numpy(weights).to(device) if len(weights) else None
    if not len(positions):
        empty = torch.zeros((len(starts) - 1, embeddings.shape[1]), device=device)
        return empty, np.full(empty.shape, -1, np.int32) if mode == "max" else None
    pooled, _, _, argmax = torch.ops.aten._embedding_bag(
        embeddings, places, offsets, False, MODES.index(mode), False, factors, True
    )
    if mode != "max":
        return pooled, None
    return pooled, _accesses(argmax.cpu().numpy(), positions, starts)


def _accesses(
    rows: NDArray[Any], positions: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Torch names the row that had a maximum; the access is the bag's first use of that row."""
    accesses = np.full(rows.shape, -1, np.int32)
    # A Python loop over bags: pooling by maximum off the CPU is rare; 10 us a bag.
    for bag in range(len(starts) - 1):
        used = positions[starts[bag] : starts[bag + 1]]
        if len(used):
            accesses[bag] = starts[bag] + (used[:, None] == rows[bag]).argmax(axis=0)
    return accesses
