"""Initial rows: what a row holds that nobody has written yet.

An initial row is a pure function of (seed, table name, key): the same bits on every machine, in any
order, with any sharding, so it need not be stored. Each lane comes from a counter-based generator:
a hash of (seed, table) and the key starts a splitmix64 sequence, of which lanes 2j and 2j + 1 take
the low and the high half of draw j.

Only integer operations and IEEE additions, multiplications, divisions and square roots are used,
never a library's log or cosine, which differ from machine to machine. The bits are part of the
store's format: change them and every unseen row of every user changes.

Threads: no state; any thread may ask, and the loops release the GIL.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError
from storage.keys import Keys, mix

Rows = NDArray[np.float32]

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_8, _32 = np.uint64(8), np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_LN2 = math.log(2.0)
_SQRT_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class Initial(ABC):
    """How the rows of a table begin. Each kind is a frozen value of JSON numbers."""

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _number(self, field.name))

    @abstractmethod
    def rows(self, seed: int, table: str, keys: Keys, dim: int) -> Rows:
        """The embeddings of rows never written: (U, dim) float32, a copy.

        seed: any int, taken modulo 2**64; keys: (U,) uint64, repeats allowed.
        """

    def describe(self) -> dict[str, str | float]:
        """The value as JSON; ``initial_from`` takes it back."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Uniform(Initial):
    """Uniform on [-scale, scale]: 2**24 equally spaced values, symmetric about 0, without 0.

    Raises ConfigError when ``scale`` is negative or not a finite float32.
    """

    scale: float
    kind: ClassVar[str] = "uniform"

    def rows(self, seed: int, table: str, keys: Keys, dim: int) -> Rows:
        """As `Initial.rows`."""
        rows = np.empty((keys.shape[0], dim), np.float32)
        _fill_uniform(stream(seed, table), keys, np.float32(self.scale) / np.float32(2**23), rows)
        return rows


@dataclass(frozen=True)
class Normal(Initial):
    """Normal with mean 0 and standard deviation ``std``; no value is beyond 6.4 deviations.

    Raises ConfigError when ``std`` is negative or not a finite float32.
    """

    std: float
    kind: ClassVar[str] = "normal"

    def rows(self, seed: int, table: str, keys: Keys, dim: int) -> Rows:
        """As `Initial.rows`."""
        rows = np.empty((keys.shape[0], dim), np.float32)
        _fill_normal(stream(seed, table), keys, np.float32(self.std), rows)
        return rows


@dataclass(frozen=True)
class Constant(Initial):
    """The same value in every lane of every row. Raises ConfigError when it is not finite."""

    value: float
    kind: ClassVar[str] = "constant"

    def rows(self, seed: int, table: str, keys: Keys, dim: int) -> Rows:
        """As `Initial.rows`; seed, table and keys do not matter."""
        return np.full((keys.shape[0], dim), self.value, np.float32)


@dataclass(frozen=True)
class Zeros(Initial):
    """Zero in every lane of every row."""

    kind: ClassVar[str] = "zeros"

    def rows(self, seed: int, table: str, keys: Keys, dim: int) -> Rows:
        """As `Initial.rows`; seed, table and keys do not matter."""
        return np.zeros((keys.shape[0], dim), np.float32)


_KINDS: dict[str, type[Initial]] = {kind.kind: kind for kind in (Uniform, Normal, Constant, Zeros)}


def initial_from(description: Mapping[str, object]) -> Initial:
    """The value that ``describe`` made ``description`` of.

    Raises ConfigError when the kind is unknown, or its numbers are missing, extra or bad.
    """
    kind = _KINDS.get(str(description.get("kind")))
    if kind is None:
        raise ConfigError(
            f"initial rows of kind {description.get('kind')!r}, expected one of {', '.join(_KINDS)}"
        )
    expected = ["kind", *(field.name for field in fields(kind))]
    if sorted(description) != sorted(expected):
        raise ConfigError(
            f"initial rows {dict(description)}, expected exactly the fields {', '.join(expected)}"
        )
    numbers: dict[str, Any] = {name: description[name] for name in expected[1:]}
    return kind(**numbers)


def _number(initial: Initial, name: str) -> float:
    """The argument as a float. Raises ConfigError when it cannot be meant."""
    value = getattr(initial, name)
    sound = isinstance(value, int | float | np.floating | np.integer) and not isinstance(
        value, bool
    )
    largest = float(np.finfo(np.float32).max)
    lowest = -largest if name == "value" else 0.0
    if not sound or not lowest <= value <= largest:
        raise ConfigError(
            f"{type(initial).__name__}({name}={value!r}), expected a finite float32 number"
            + ("" if name == "value" else " of 0 or more")
        )
    return float(value)


def stream(seed: int, table: str) -> np.uint64:
    """The hash that tells tables and seeds apart: of the seed and the FNV-1a hash of the name."""
    name = 0xCBF29CE484222325
    for byte in table.encode():
        name = (name ^ byte) * 0x100000001B3 % 2**64
    return np.uint64(mix(np.uint64(int(mix(np.uint64(seed % 2**64))) ^ name)))


@nb.njit(nogil=True, cache=True)
def _fill_uniform(stream: Any, keys: Keys, unit: Any, rows: Rows) -> None:
    """Fills rows (U, D) with the odd multiples of unit / 2 that 24 random bits a lane choose."""
    width = rows.shape[1]
    for u in range(rows.shape[0]):
        state = mix(stream ^ mix(keys[u]))
        for d in range(0, width, 2):
            bits = mix(state)
            state += _INCREMENT
            rows[u, d] = _odd(bits & _LOW) * unit
            if d + 1 < width:
                rows[u, d + 1] = _odd(bits >> _32) * unit


@nb.njit(nogil=True, cache=True)
def _odd(bits: Any) -> Any:
    """The upper 24 of 32 bits as a number k + 1/2, abs(k) <= 2**23: exact in a float32."""
    return np.float32(np.int64(bits >> _8) - (1 << 23)) + np.float32(0.5)


@nb.njit(nogil=True, cache=True)
def _fill_normal(stream: Any, keys: Keys, std: Any, rows: Rows) -> None:
    """Fills rows (U, D) by the inverse of the normal distribution at 32 random bits a lane."""
    width = rows.shape[1]
    for u in range(rows.shape[0]):
        state = mix(stream ^ mix(keys[u]))
        for d in range(0, width, 2):
            bits = mix(state)
            state += _INCREMENT
            rows[u, d] = np.float32(_quantile(_inside(bits & _LOW))) * std
            if d + 1 < width:
                rows[u, d + 1] = np.float32(_quantile(_inside(bits >> _32))) * std


@nb.njit(nogil=True, cache=True)
def _inside(bits: Any) -> Any:
    """32 bits as a probability strictly between 0 and 1."""
    return (np.float64(bits) + 0.5) / 4294967296.0


@nb.njit(nogil=True, cache=True)
def _quantile(p: Any) -> Any:
    """Where the standard normal distribution reaches p, in float64, right to about 1e-7.

    Source: PPND7 of Wichura, Algorithm AS 241, Applied Statistics 37 (1988).
    """
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        top = ((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179
        return q * top / (((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0)
    r = math.sqrt(-_log(min(p, 1.0 - p)))
    if r <= 5.0:
        r -= 1.6
        top = ((0.17023821103 * r + 1.3067284816) * r + 2.7568153900) * r + 1.4234372777
        x = top / ((0.12021132975 * r + 0.73700164250) * r + 1.0)
    else:
        r -= 5.0
        top = ((0.017337203997 * r + 0.42868294337) * r + 3.0812263860) * r + 6.6579051150
        x = top / ((0.012258202635 * r + 0.24197894225) * r + 1.0)
    return -x if q < 0 else x


@nb.njit(nogil=True, cache=True)
def _log(x: Any) -> Any:
    """The natural logarithm of 0 < x < 1, right to 1e-12, from exactly rounded operations only.

    x = m * 2**e with m in [0.7, 1.4]; log m = 2 artanh(z), z = (m - 1) / (m + 1), by its series.
    """
    exponent = 0
    while x < _SQRT_HALF:
        x *= 2.0
        exponent -= 1
    z = (x - 1.0) / (x + 1.0)
    square = z * z
    series = 0.0
    for k in range(15, 0, -2):
        series = series * square + 1.0 / k
    return 2.0 * z * series + exponent * _LN2
