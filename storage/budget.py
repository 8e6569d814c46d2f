"""Budgets: how many bytes a user gave, and who holds how many of them.

A budget counts what is *reserved*, not what the system has paged in, so the figure is an upper
bound of real use. It is checked before memory is taken: `Budget.hold` refuses, it never warns.

Threads: one owner, the store's planner.
"""

from __future__ import annotations

import re
from fractions import Fraction

from storage.errors import ConfigError

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*")


def parse_size(text: str | int, what: str = "size") -> int:
    """Bytes meant by ``text``: an int, or a number with B, KB, MiB, G and so on.

    >>> parse_size("16MiB"), parse_size("1.5 GB"), parse_size("2g")
    (16777216, 1500000000, 2147483648)

    Raises: ConfigError when it is no size, or not above zero.
    """
    match = _SIZE.fullmatch(str(text))
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"{what}: expected bytes such as 512MiB, 8GiB or 1.5TB, got {text!r}")
    size = int(Fraction(match[1]) * unit)
    if size <= 0:
        raise ConfigError(f"{what}: expected more than 0 bytes, got {text!r}")
    return size


def show_size(size: int) -> str:
    """Bytes for people, in binary units, to 1 in 100.

    >>> show_size(16777216), show_size(1000), show_size(5 * 2**40), show_size(2**20 - 1)
    ('16.0 MiB', '1000 B', '5.00 TiB', '1.00 MiB')
    """
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    # 1023.95 KiB would be shown as 1024.0.
    while abs(value) >= 1023.95 and len(units) > 1:
        value, units = value / 1024, units[1:]
    unit = units[0]
    return f"{size} B" if unit == "B" else f"{value:.{2 if abs(value) < 9.995 else 1}f} {unit}"


class Budget:
    """``total`` bytes for one table on one kind of memory, divided among named parts.

    Invariant: the sum of all parts never exceeds ``total``; ``peak`` is the largest sum seen.
    """

    def __init__(self, total: int, what: str) -> None:
        self.total = total
        self.what = what
        self.parts: dict[str, int] = {}
        self.peak = 0

    @property
    def used(self) -> int:
        """Bytes held by all parts together."""
        return sum(self.parts.values())

    @property
    def free(self) -> int:
        """Bytes nobody holds."""
        return self.total - self.used

    def hold(self, part: str, size: int) -> None:
        """Say that ``part`` now holds ``size`` bytes in all (not: ``size`` more).

        Raises: ConfigError when the total would be exceeded; nothing has changed then.
        """
        after = self.used - self.parts.get(part, 0) + size
        if after > self.total:
            raise ConfigError(
                f"{self.what}: expected at most {show_size(self.total)}, but {part} needs "
                f"{show_size(size)} beside {show_size(after - size)}; give at least {after} bytes"
            )
        self.parts[part] = size
        self.peak = max(self.peak, after)
