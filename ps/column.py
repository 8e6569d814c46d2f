"""Column: what a portable file of rows has of each row, and in which numbers.

A leaf module: the readers of each format say with it what they found, `ps.rowfile` what it wants.
"""

from __future__ import annotations

from dataclasses import dataclass

from ps.table import Table

ANY = -1
"""A width that differs from row to row, as far as the file declares."""

_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Column:
    """dtypes: NumPy's names of what its numbers may be. shape: of one row, () or (width,).

    >>> str(Column(("float32",), (16,)))
    'float32 x 16'
    """

    dtypes: tuple[str, ...]
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        widths = ("any length" if width == ANY else str(width) for width in self.shape)
        return " x ".join([" or ".join(self.dtypes), *widths])

    def takes(self, found: Column) -> bool:
        """Whether numbers of the column ``found`` do for this one."""
        return set(found.dtypes) <= set(self.dtypes) and (
            found.shape == self.shape or (found.shape == (ANY,) and len(self.shape) == 1)
        )


def whole_columns(table: Table) -> dict[str, Column]:
    """What an exported file has: a table without optimizer state has no column of it."""
    columns = {
        "keys": Column(("uint64",)),
        "embeddings": Column(("float32",), (table.dim,)),
        "state": Column(("float32",), (table.state_width,)),
        "steps": Column(("uint32",)),
    }
    return {name: column for name, column in columns.items() if column.shape != (0,)}


def bare_columns(table: Table) -> dict[str, Column]:
    """What a file of somebody else's embeddings needs; they are kept as float32."""
    return {"keys": Column(_INTEGERS), "embeddings": Column(_FLOATS, (table.dim,))}
