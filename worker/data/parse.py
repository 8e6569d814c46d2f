"""The parser: whole lines of text in memory to arrays, by two compiled passes.

``scan`` finds the lines and judges each; ``parse`` reads the values of lines that were found
good. Rows that a resumed run passes over, or that are only counted, cost the first pass alone.

Threads: pure functions of their arguments that release the GIL.
"""

from __future__ import annotations

from math import log1p
from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from worker.data.hash import value_key
from worker.data.schema import DENSE, Kind, Schema

Bytes = NDArray[np.uint8]

GOOD, PASSED, BAD_COLUMNS, BAD_LABEL, BAD_NUMBER = 0, 1, 2, 3, 4
"""What ``scan`` says of a line; PASSED is a blank line or a comment."""

# Plain integers, because a kernel compares them with array elements.
_LABEL, _COUNT, _SIGNED, _RAW, _FEATURE = 1, 2, 3, 4, 5
_LINE_END, _RETURN, _BLANK, _COMMA, _NO_BYTE = 10, 13, 32, 44, -1


class Layout(NamedTuple):
    """A schema as the arrays the kernels read: a tuple, because kernels take no dataclass.

    kinds, tails: (columns,) int64. labels: (L, longest) uint8, positive texts first. lengths: (L,)
    int64, the bytes of each label text. missing: (M,) uint8. dense, features: I and F.
    """

    kinds: NDArray[np.int64]
    tails: NDArray[np.int64]
    separator: int
    comment: int
    missing: Bytes
    labels: Bytes
    lengths: NDArray[np.int64]
    positives: int
    dense: int
    features: int


class Lines(NamedTuple):
    """What ``scan`` found: a row a line.

    ends: (n, columns) int64, where each value ends; the next begins one further. starts: (n,)
    int64, where each line begins. verdicts: (n,) int64. details: (n,) int64, of a bad line the
    columns it has, or the number (from 0) of the column that cannot be read.
    """

    ends: NDArray[np.int64]
    starts: NDArray[np.int64]
    verdicts: NDArray[np.int64]
    details: NDArray[np.int64]


def layout(schema: Schema) -> Layout:
    """The schema in the form the kernels read."""
    texts = schema.positive + schema.negative
    labels = np.zeros((len(texts), max(map(len, texts))), dtype=np.uint8)
    for row, text in enumerate(texts):
        labels[row, : len(text)] = np.frombuffer(text, dtype=np.uint8)
    return Layout(
        kinds=np.array([int(column.kind) for column in schema.columns], dtype=np.int64),
        tails=np.array([column.tail for column in schema.columns], dtype=np.int64),
        separator=schema.separator[0],
        comment=schema.comment[0] if schema.comment else _NO_BYTE,
        missing=np.frombuffer(schema.missing, dtype=np.uint8).copy(),
        labels=labels,
        lengths=np.array([len(text) for text in texts], dtype=np.int64),
        positives=len(schema.positive),
        dense=sum(column.kind in DENSE for column in schema.columns),
        features=sum(column.kind == Kind.FEATURE for column in schema.columns),
    )


@nb.njit(nogil=True, cache=True)
def scan(text: Bytes, count: int, shape: Layout) -> Lines:
    """The lines of ``text`` and whether each can be read, in new arrays.

    text: (T,) uint8 that ends with a line end. count: its line ends. A good line has the schema's
    number of columns, a label that is one of its texts, and numbers where numbers belong.
    """
    columns, separator = shape.kinds.shape[0], shape.separator
    ends = np.empty((count, columns), dtype=np.int64)
    starts = np.empty(count, dtype=np.int64)
    verdicts = np.zeros(count, dtype=np.int64)
    details = np.zeros(count, dtype=np.int64)
    highest = max(separator, _LINE_END)
    position = 0
    for line in range(count):
        starts[line] = position
        passed = _is_passed(text, position, shape.comment)
        column = 0
        while True:
            byte = text[position]
            # One comparison for nearly every byte; with two the pass is a third slower.
            if byte <= highest and byte in (separator, _LINE_END):
                if column < columns:
                    ends[line, column] = position
                column += 1
                if byte == _LINE_END:
                    break
            position += 1
        position += 1
        if passed:
            verdicts[line] = PASSED
        elif column != columns:
            verdicts[line], details[line] = BAD_COLUMNS, column
        else:
            verdicts[line], details[line] = _judge(text, starts[line], ends[line], shape)
    return Lines(ends, starts, verdicts, details)


@nb.njit(nogil=True, cache=True)
def parse(
    text: Bytes, lines: Lines, rows: NDArray[np.int64], shape: Layout
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Labels (n,) float32, dense values (n, I) float32 and keys (n, F) int64 of good lines.

    text: what ``lines`` came from. rows: (n,) int64, the numbers in ``lines`` of good ones.
    """
    labels = np.zeros(rows.shape[0], dtype=np.float32)
    dense = np.empty((rows.shape[0], shape.dense), dtype=np.float32)
    keys = np.empty((rows.shape[0], shape.features), dtype=np.int64)
    # Locals, because a tuple of arrays costs a call more than most values take to read.
    kinds, tails, ends = shape.kinds, shape.tails, lines.ends
    separator, missing = shape.separator, shape.missing
    for row in range(rows.shape[0]):
        line = rows[row]
        value, feature = 0, 0
        begin = lines.starts[line]
        for column in range(kinds.shape[0]):
            end = ends[line, column]
            kind = kinds[column]
            if kind != 0:
                start, stop = _trim(text, begin, end, separator, missing)
                if kind == _FEATURE:
                    if tails[column] > 0:
                        start = max(start, stop - tails[column])
                    keys[row, feature] = np.int64(value_key(text, start, stop, feature))
                    feature += 1
                elif kind == _LABEL:
                    positive = _find_label(text, start, stop, shape) < shape.positives
                    labels[row] = np.float32(positive)
                else:
                    dense[row, value] = _dense(text, start, stop, kind)
                    value += 1
            begin = end + 1
    return labels, dense, keys


@nb.njit(nogil=True, cache=True)
def _is_passed(text: Bytes, start: int, comment: int) -> bool:
    """Whether the line is a comment or has no bytes (a last empty line is common)."""
    byte = text[start]
    if byte in (comment, _LINE_END):
        return True
    return bool(byte == _RETURN and text[start + 1] == _LINE_END)


@nb.njit(nogil=True, cache=True)
def _trim(text: Bytes, start: int, stop: int, separator: int, missing: Bytes) -> tuple[int, int]:
    """Where a value lies without the blanks around it; nothing is left of the mark for missing."""
    if stop > start and text[stop] == _LINE_END and text[stop - 1] == _RETURN:
        stop -= 1
    if separator == _COMMA:
        while start < stop and text[start] == _BLANK:
            start += 1
        while start < stop and text[stop - 1] == _BLANK:
            stop -= 1
    if missing.shape[0] > 0 and _equals(text, start, stop, missing):
        start = stop
    return start, stop


@nb.njit(nogil=True, cache=True)
def _equals(text: Bytes, start: int, stop: int, other: Bytes) -> bool:
    if stop - start != other.shape[0]:
        return False
    same = True
    for i in range(other.shape[0]):
        same &= text[start + i] == other[i]
    return same


@nb.njit(nogil=True, cache=True)
def _find_label(text: Bytes, start: int, stop: int, shape: Layout) -> int:
    """The number of the label text that the value is, or -1."""
    for label in range(shape.lengths.shape[0]):
        if _equals(text, start, stop, shape.labels[label, : shape.lengths[label]]):
            return label
    return -1


@nb.njit(nogil=True, cache=True)
def _judge(text: Bytes, begin: int, ends: NDArray[np.int64], shape: Layout) -> tuple[int, int]:
    """Whether the values of a line can be read, and the first column that cannot."""
    for column in range(ends.shape[0]):
        kind = shape.kinds[column]
        if kind != 0 and kind != _FEATURE:
            start, stop = _trim(text, begin, ends[column], shape.separator, shape.missing)
            if kind == _LABEL:
                if _find_label(text, start, stop, shape) < 0:
                    return BAD_LABEL, column
            elif stop > start and not _number(text, start, stop)[1]:
                return BAD_NUMBER, column
        begin = ends[column] + 1
    return GOOD, 0


@nb.njit(nogil=True, cache=True)
def _number(text: Bytes, start: int, stop: int) -> tuple[float, bool]:
    """The decimal number in ``text[start:stop]`` (no exponent) and whether it is one."""
    negative = text[start] == 45
    position = start + 1 if negative or text[start] == 43 else start
    value, scale, digits = 0.0, 0.0, 0
    while position < stop:
        byte = text[position]
        if 48 <= byte <= 57:
            value = value * 10.0 + (byte - 48)
            scale *= 10.0
            digits += 1
        elif byte == 46 and scale == 0.0:
            scale = 1.0
        else:
            return 0.0, False
        position += 1
    if scale > 1.0:
        value /= scale
    return (-value if negative else value), digits > 0


@nb.njit(nogil=True, cache=True)
def _dense(text: Bytes, start: int, stop: int, kind: int) -> Any:
    """The dense value of a column of ``kind``, by the comments in ``schema.Kind``."""
    if stop == start:
        return np.nan if kind == _RAW else 0.0
    value = _number(text, start, stop)[0]
    if kind == _RAW:
        return value
    if kind == _COUNT:
        return log1p(max(value, 0.0))
    return log1p(value) if value >= 0.0 else -log1p(-value)
