"""Codecs: how a row is written in the tiers below the top one, where it may be narrower.

A record is the embedding in the codec's format, padded to a multiple of 4 bytes, then the optimizer
state, which is always exact float32. Numbers are little-endian. The formats::

    float32    4 bytes a lane: the bytes of the row, NaN payloads and all
    bfloat16   2 bytes a lane: the upper half of the float32, rounded to nearest, ties to even
    float16    2 bytes a lane: IEEE half precision, rounded to nearest, ties to even
    int8       1 byte a lane, then float32 scale and float32 minimum: code * scale + minimum

Invariant of every codec: a record whose row has not changed since it was decoded is encoded to the
same bytes, so a row may travel up and down any number of times and rounds once.

Values beyond the range of bfloat16 and float16 become infinite, as in torch; NaN stays NaN. An int8
row has one scale for all lanes, so with a value that is not finite in it *every* lane becomes NaN:
a poisoned row never looks like a sound one.

Threads: no state; any thread may encode and decode, and the loops release the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError

Rows = NDArray[np.float32]
Records = NDArray[np.uint8]

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Tolerance:
    """The rounding of one encoding: ``abs(decoded - x) <= absolute + relative * max(abs(row))``.

    ``row`` is the embedding that holds x, all of it within the range of the format. Training
    carries such differences on: after many steps they are larger than one rounding.
    """

    relative: float
    absolute: float


@dataclass(frozen=True)
class Codec:
    """One format of the embedding part of a record; the instances are in ``CODECS``."""

    name: str
    lane_bytes: int
    row_bytes: int
    """Bytes a row beside its lanes: scale and minimum of int8."""
    tolerance: Tolerance
    write: Callable[[Rows, Records], None] | None
    """Fills the embedding part (U, lane_bytes * D + row_bytes) of records from rows (U, D).

    None in float32, whose records are the rows."""
    read: Callable[[Records, Rows], None] | None
    """The way back."""

    def record_bytes(self, dim: int, state_width: int) -> int:
        """Bytes of one record, a multiple of 4: the embedding, padding, then the state."""
        return self._state_start(dim) + 4 * state_width

    def encode(self, rows: Rows, dim: int) -> Records:
        """The rows' records: (U, record_bytes) uint8.

        rows: (U, W) float32, the embedding in the first ``dim`` lanes and the state in the others.
        Returns a view of ``rows`` for float32 when they are contiguous, else a copy.
        """
        rows = np.ascontiguousarray(rows, np.float32)
        if self.write is None:
            return rows.view(np.uint8)
        start = self._state_start(dim)
        records = np.zeros((rows.shape[0], self.record_bytes(dim, rows.shape[1] - dim)), np.uint8)
        self.write(rows[:, :dim], records[:, : self._embedding_bytes(dim)])
        records[:, start:] = rows[:, dim:].view(np.uint8)
        return records

    def decode(self, records: Records, dim: int, state_width: int) -> Rows:
        """The records' rows: (U, dim + state_width) float32.

        records: (U, record_bytes) uint8. Returns a view of ``records`` for float32 when they are
        contiguous and aligned, else a copy.
        """
        assert records.shape[1] == self.record_bytes(dim, state_width)
        if self.read is None:
            flat = np.ascontiguousarray(records)
            return np.require(flat.view(np.float32), requirements="A")
        rows = np.empty((records.shape[0], dim + state_width), np.float32)
        self.read(records[:, : self._embedding_bytes(dim)], rows[:, :dim])
        rows[:, dim:].view(np.uint8)[:] = records[:, self._state_start(dim) :]
        return rows

    def _embedding_bytes(self, dim: int) -> int:
        return self.lane_bytes * dim + self.row_bytes

    def _state_start(self, dim: int) -> int:
        return (self._embedding_bytes(dim) + 3) // 4 * 4


def codec(dtype: str) -> Codec:
    """The codec of a dtype's name. Raises ConfigError for a name that is not in ``CODECS``."""
    try:
        return CODECS[dtype]
    except KeyError:
        names = ", ".join(CODECS)
        raise ConfigError(f"row dtype {dtype!r} is unknown, expected one of {names}") from None


def tolerance(dtype: str) -> Tolerance:
    """How far one rounding to ``dtype`` may move a value. Raises ConfigError for another name."""
    return codec(dtype).tolerance


def _write_bfloat16(rows: Rows, parts: Records) -> None:
    _round_to_bfloat16(rows.view(np.uint32), parts.view(np.uint16))


def _read_bfloat16(parts: Records, rows: Rows) -> None:
    _widen_bfloat16(parts.view(np.uint16), rows.view(np.uint32))


def _write_float16(rows: Rows, parts: Records) -> None:
    _round_to_float16(rows, rows.view(np.uint32), parts.view(np.uint16))


def _read_float16(parts: Records, rows: Rows) -> None:
    _widen_float16(parts.view(np.uint16), rows, rows.view(np.uint32))


def _write_int8(rows: Rows, parts: Records) -> None:
    dim = rows.shape[1]
    scales = np.empty((rows.shape[0], 2), np.float32)
    _quantize(rows, parts[:, :dim], scales)
    parts[:, dim:] = scales.view(np.uint8)


def _read_int8(parts: Records, rows: Rows) -> None:
    dim = rows.shape[1]
    # A copy, because after an odd number of codes the floats are not aligned.
    scales = parts[:, dim:].copy().view(np.float32)
    _dequantize(parts[:, :dim], scales, rows)


@nb.njit(nogil=True, cache=True)
def _round_to_bfloat16(bits: Any, halves: Any) -> None:
    """bits: (U, D) uint32 patterns of float32 -> halves: (U, D) uint16."""
    for u in range(bits.shape[0]):
        for d in range(bits.shape[1]):
            pattern = np.uint32(bits[u, d])
            if pattern & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
                # Rounding could carry a NaN into infinity; the quiet bit keeps it one.
                halves[u, d] = np.uint16((pattern >> np.uint32(16)) | np.uint32(0x40))
            else:
                tie = (pattern >> np.uint32(16)) & np.uint32(1)
                halves[u, d] = np.uint16((pattern + np.uint32(0x7FFF) + tie) >> np.uint32(16))


@nb.njit(nogil=True, cache=True)
def _widen_bfloat16(halves: Any, bits: Any) -> None:
    """halves: (U, D) uint16 -> bits: (U, D) uint32 patterns of float32."""
    for u in range(halves.shape[0]):
        for d in range(halves.shape[1]):
            bits[u, d] = np.uint32(halves[u, d]) << np.uint32(16)


@nb.njit(nogil=True, cache=True)
def _round_to_float16(rows: Rows, bits: Any, halves: Any) -> None:
    """rows: (U, D) and bits, their uint32 patterns -> halves: (U, D) uint16.

    NumPy casts the strided lanes of records at 2 M rows/s of 64 and back at 1; this does 8 and 9.
    """
    for u in range(bits.shape[0]):
        for d in range(bits.shape[1]):
            pattern = np.uint32(bits[u, d])
            sign = (pattern >> np.uint32(16)) & np.uint32(0x8000)
            size = pattern & np.uint32(0x7FFFFFFF)
            if size > np.uint32(0x7F800000):
                half = np.uint32(0x7E00) | ((size >> np.uint32(13)) & np.uint32(0x1FF))
            elif size >= np.uint32(0x477FF000):  # 65520, half-way beyond the largest
                half = np.uint32(0x7C00)
            elif size >= np.uint32(0x38800000):  # 2**-14, the smallest normal
                tie = (size >> np.uint32(13)) & np.uint32(1)
                half = (size - np.uint32(0x38000000) + np.uint32(0xFFF) + tie) >> np.uint32(13)
            else:
                half = np.uint32(np.rint(np.abs(rows[u, d]) * np.float32(2.0**24)))
            halves[u, d] = np.uint16(sign | half)


@nb.njit(nogil=True, cache=True)
def _widen_float16(halves: Any, rows: Rows, bits: Any) -> None:
    """halves: (U, D) uint16 -> rows: (U, D), of which bits are the uint32 patterns."""
    for u in range(halves.shape[0]):
        for d in range(halves.shape[1]):
            half = np.uint32(halves[u, d])
            sign = (half & np.uint32(0x8000)) << np.uint32(16)
            size = half & np.uint32(0x7FFF)
            if size >= np.uint32(0x7C00):  # infinity and NaN
                payload = (size & np.uint32(0x3FF)) << np.uint32(13)
                bits[u, d] = sign | np.uint32(0x7F800000) | payload
            elif size >= np.uint32(0x400):
                bits[u, d] = sign | ((size << np.uint32(13)) + np.uint32(0x38000000))
            else:
                value = np.float32(size) * np.float32(2.0**-24)
                rows[u, d] = -value if sign else value


@nb.njit(nogil=True, cache=True)
def _lane(code: Any, scale: Any, minimum: Any) -> Any:
    """The float32 that a code stands for, computed in float64 and never rounded up to infinity."""
    value = np.float64(code) * np.float64(scale) + np.float64(minimum)
    return np.float32(_LARGEST if value > _LARGEST else value)


@nb.njit(nogil=True, cache=True)
def _code(value: Any, scale: Any, minimum: Any) -> Any:
    """The code nearest to a lane's value, ties to even; ``scale`` is not 0."""
    steps = np.rint((np.float64(value) - np.float64(minimum)) / np.float64(scale))
    return np.uint8(min(steps, 255.0))


@nb.njit(nogil=True, cache=True)
def _scale(minimum: Any, maximum: Any) -> Any:
    """The scale of a row: (maximum - minimum) / 255, moved to where decoding reproduces it.

    Decoding rounds, so the scale taken from a decoded row can be another: at minimum 0.499 * 2**-16
    and maximum 255 + 2**-16 it is the float below 1 instead of 1. Repeating "scale to maximum to
    scale" ends, since both steps are monotone: the scales go one way, over finitely many floats.
    """
    scale = np.float32((np.float64(maximum) - np.float64(minimum)) / 255.0)
    while True:
        top = _lane(255, scale, minimum)
        again = np.float32((np.float64(top) - np.float64(minimum)) / 255.0)
        if again == scale:
            return scale
        scale = again


@nb.njit(nogil=True, cache=True)
def _quantize(rows: Rows, codes: Records, scales: Any) -> None:
    """rows: (U, D) -> codes: (U, D) uint8, scales: (U, 2) float32, scale and minimum.

    torch's row-wise format (quantized::embedding_bag_byte_prepack), with two differences: no 1e-8
    is added to the range, which would shrink rows of small range at every encoding; and the scale
    is one that decoding reproduces.
    """
    for u in range(rows.shape[0]):
        minimum, maximum = np.float32(np.inf), np.float32(-np.inf)
        unsound = False
        for d in range(rows.shape[1]):
            value = rows[u, d]
            minimum, maximum = min(minimum, value), max(maximum, value)
            unsound |= not (np.abs(value) <= _LARGEST)
        # -0.0 would come back as 0.0, which has other bytes.
        minimum, maximum = minimum + np.float32(0), maximum + np.float32(0)
        scale = np.float32(np.nan) if unsound else _scale(minimum, maximum)
        scales[u, 0], scales[u, 1] = scale, np.float32(np.nan) if unsound else minimum
        if unsound or scale == 0:
            codes[u, :] = 0
            continue
        # Codes need no repetition: a lane is a float. Where the floats around it are further apart
        # than the steps, the decoded code is the lane itself; where they are closer, it is off its
        # step by less than half of one. Both ways its code is the same again.
        for d in range(rows.shape[1]):
            codes[u, d] = _code(rows[u, d], scale, minimum)


@nb.njit(nogil=True, cache=True)
def _dequantize(codes: Records, scales: Any, rows: Rows) -> None:
    """codes: (U, D) uint8, scales: (U, 2) float32 -> rows: (U, D)."""
    for u in range(rows.shape[0]):
        for d in range(rows.shape[1]):
            rows[u, d] = _lane(codes[u, d], scales[u, 0], scales[u, 1])


# Half a unit in the last of 8 and of 11 binary digits, and of the smallest subnormal; int8 rounds
# by half a step, a step being at most 2 * max(abs(row)) / 255, and then to a float32.
CODECS: Mapping[str, Codec] = MappingProxyType(
    {
        codec.name: codec
        for codec in (
            Codec("float32", 4, 0, Tolerance(0.0, 0.0), None, None),
            Codec("bfloat16", 2, 0, Tolerance(2**-8, 2**-134), _write_bfloat16, _read_bfloat16),
            Codec("float16", 2, 0, Tolerance(2**-11, 2**-25), _write_float16, _read_float16),
            Codec("int8", 1, 8, Tolerance(1 / 255 + 2**-20, 2**-141), _write_int8, _read_int8),
        )
    }
)
"""The formats by dtype name."""
