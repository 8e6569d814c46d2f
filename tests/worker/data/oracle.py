"""The rules of worker/data/hash.py and schema.py once more, in plain Python integers and floats."""

from __future__ import annotations

import itertools
import math
import re

from worker.data.batch import Batch

_WORD = 2**64 - 1


def mix(key: int) -> int:
    x = (key + 0x9E3779B97F4A7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


def fnv1a(text: bytes) -> int:
    hashed = 0xCBF29CE484222325
    for byte in text:
        hashed = ((hashed ^ byte) * 0x100000001B3) & _WORD
    return hashed


def signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key


def text_key(text: bytes, feature: int) -> int:
    if not text:
        return signed(mix(2**63 | feature << 32))
    if re.fullmatch(rb"[0-9a-f]{8}", text):
        return signed(mix(feature << 32 | int(text, 16)))
    return signed(mix(fnv1a(text) ^ mix(3 << 62 | feature)))


def integer_key(value: int, feature: int) -> int:
    return signed(mix((value & _WORD) ^ mix(1 << 62 | feature)))


def criteo_row(line: bytes) -> tuple[float, list[float], list[int]]:
    """Label, dense values and keys of a line; facts: ln(x + 1), negative and missing are 0."""
    values = line.rstrip(b"\r\n").split(b"\t")
    dense = [math.log(max(int(value or b"0"), 0) + 1) for value in values[1:14]]
    keys = [text_key(value, feature) for feature, value in enumerate(values[14:])]
    return float(values[0]), dense, keys


Row = tuple[float, list[float], list[list[int]]]


def rows_of(batches: list[Batch]) -> list[Row]:
    """Every example of some batches: label, dense values, bags."""
    rows: list[Row] = []
    for batch in batches:
        offsets, ids = batch.offsets.tolist(), batch.ids.tolist()
        bags = [ids[start:stop] for start, stop in itertools.pairwise(offsets)]
        for row, label in enumerate(batch.labels.tolist()):
            own = bags[row * batch.features : (row + 1) * batch.features]
            rows.append((label, batch.dense[row].tolist(), own))
    return rows


def line(number: int) -> bytes:
    """A good Criteo line that no other number has."""
    return b"\t".join([b"%d" % (number % 2), *[b"%d" % number] * 13, *[b"%08x" % number] * 26])


def numbers_of(rows: list[Row]) -> list[int]:
    """The numbers that ``line`` made rows of."""
    numbers = {text_key(b"%08x" % number, 0): number for number in range(1000)}
    return [numbers[bags[0][0]] for _, _, bags in rows]
