"""Zipf: ranks 1 to n drawn with a chance proportional to rank ** -s, from a counter, not a state.

Rejection-inversion: Hörmann and Derflinger, "Rejection-inversion to generate variates from
monotone discrete distributions", ACM TOMACS 6(3), 1996; exact for every s >= 0, in constant time
and memory whatever n is. s = 0 is uniform.

Threads: pure functions of their arguments, free of the GIL when called from other kernels.
"""

from __future__ import annotations

from math import exp, expm1, log, log1p
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from storage.keys import mix
from worker.data.hash import unit

STEP = np.uint64(0x9E3779B97F4A7C15)
"""How far a counter moves between two numbers (splitmix64's increment)."""


class Zipf(NamedTuple):
    """The distribution and the constants of its sampler, from ``prepare_zipf``."""

    n: int
    s: float
    low: float
    high: float
    sure: float


def prepare_zipf(n: int, s: float) -> Zipf:
    """The distribution over ranks 1 to ``n`` (at least 1) with exponent ``s`` (at least 0)."""
    low = _area(1.5, s) - 1.0
    sure = 2.0 - _area_inverse(_area(2.5, s) - exp(-s * log(2.0)), s)
    return Zipf(n, s, low, _area(n + 0.5, s), sure)


@nb.njit(nogil=True, cache=True)
def draw_rank(counter: Any, zipf: Zipf) -> tuple[Any, Any]:
    """A rank (int64) and the counter (uint64) for the next draw.

    counter: uint64 scalar; the same counter gives the same rank. About 1.1 numbers are used.
    """
    while True:
        u = zipf.high + unit(mix(counter)) * (zipf.low - zipf.high)
        counter += STEP
        x = _area_inverse(u, zipf.s)
        rank = min(max(np.int64(x + 0.5), np.int64(1)), np.int64(zipf.n))
        if rank - x <= zipf.sure or u >= _area(rank + 0.5, zipf.s) - exp(-zipf.s * log(rank)):
            return rank, counter


@nb.njit(nogil=True, cache=True)
def _area(x: float, s: float) -> float:
    """The integral of x ** -s, (x ** (1 - s) - 1) / (1 - s), and log(x) where s is 1."""
    log_x = log(x)
    power = (1.0 - s) * log_x
    if abs(power) > 1e-8:
        return log_x * expm1(power) / power
    return log_x * (1.0 + 0.5 * power)


@nb.njit(nogil=True, cache=True)
def _area_inverse(area: float, s: float) -> float:
    """The x with ``_area(x, s) == area``."""
    power = max(area * (1.0 - s), -1.0)
    if abs(power) > 1e-8:
        return exp(area * log1p(power) / power)
    return exp(area * (1.0 - 0.5 * power))
