"""Losses: what of one table's log cannot be read any more.

Threads: one owner.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_SHOWN = 5


@dataclass
class Losses:
    """See the module's docstring. Block numbers are those of the log.

    blocks: damaged ones, with the keys of the rows in them that a kept cut shows. unknown: damaged
    ones whose keys are damaged, too. tombstones: damaged lists of deleted keys.
    """

    table: str
    blocks: dict[int, list[int]] = field(default_factory=dict)
    unknown: list[int] = field(default_factory=list)
    tombstones: int = 0

    def __bool__(self) -> bool:
        return bool(self.blocks or self.unknown or self.tombstones)

    @property
    def rows(self) -> int:
        """Rows that are lost, as far as it is known; older versions of some may be whole."""
        return sum(map(len, self.blocks.values()))

    def lines(self) -> list[str]:
        """One line for each."""
        return [
            *(self._of_block(number, keys) for number, keys in sorted(self.blocks.items())),
            *(
                f"table {self.table!r}: block {number} is damaged, and so are its keys in the "
                f"directory: its rows are lost, which ones is not known"
                for number in self.unknown
            ),
            *(
                [
                    f"table {self.table!r}: {self.tombstones} lists of deleted keys are damaged: "
                    f"rows of theirs may show again"
                ]
                if self.tombstones
                else []
            ),
        ]

    def _of_block(self, number: int, keys: list[int]) -> str:
        if not keys:
            return f"table {self.table!r}: block {number} is damaged; no row in it counts"
        more = ", ..." if len(keys) > _SHOWN else ""
        return (
            f"table {self.table!r}: block {number} is damaged: {len(keys)} rows, of keys "
            f"{', '.join(map(str, keys[:_SHOWN]))}{more}"
        )
