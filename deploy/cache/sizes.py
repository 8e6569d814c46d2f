"""Sizes of caches, as rows or as shares of the different keys of a trace."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from storage.errors import ConfigError

_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([%kKmMgG]?)")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


def parse_rows(text: str, distinct: int, option: str) -> int:
    """Rows meant by ``text``: a number, with k, M or G, or a share such as 10%, of ``distinct``.

    >>> parse_rows("10%", 2000, "--size"), parse_rows("1.5k", 2000, "--size")
    (200, 1500)

    Raises: ConfigError when it is no size, or not at least one row.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{option}: expected rows such as 1000 or 10k, or 10%, got {text!r}")
    number, unit = float(match[1]), match[2].lower()
    rows = int(number / 100 * distinct) if unit == "%" else int(number * _UNITS[unit])
    if rows < 1:
        raise ConfigError(
            f"{option}: expected at least 1 row, got {text!r} of {distinct:,} different keys"
        )
    return rows


def parse_sizes(text: str, distinct: int, option: str = "--size") -> tuple[int, ...]:
    """Rows of each size in a list with commas, smallest first. Raises: ConfigError."""
    return tuple(sorted({parse_rows(part, distinct, option) for part in text.split(",")}))


def spread(distinct: int, count: int) -> tuple[int, ...]:
    """About ``count`` sizes for a curve, from a thousandth of the keys to all of them."""
    found = np.geomspace(max(1, distinct / 1000), max(1, distinct), count)
    return tuple(sorted({max(1, round(size)) for size in found}))


def note_large(sizes: Sequence[int], distinct: int) -> str | None:
    """What to say of sizes that hold every key; None if there are none."""
    large = [size for size in sizes if size >= distinct]
    if not large:
        return None
    return f"{large[0]:,} rows hold all {distinct:,} different keys: only first uses miss"
