"""Stack: the tiers of one table, sized to the bytes the user gave.

Two levels (RAM over SSD) or three (HBM over RAM over SSD). The top level is where the step works.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ps.checkpoint import Cut
from ps.doorkeeper import Doorkeeper, bytes_held
from ps.table import Table
from storage.address import ENTRY_BYTES
from storage.array import CodedArray, FloatArray, RowArray
from storage.budget import Budget, show_size
from storage.cache import CacheTier, overhead_bytes
from storage.errors import ConfigError
from storage.hierarchy import Hierarchy
from storage.log import BlockLog
from storage.lookahead import LookAhead, look_ahead_bytes
from storage.reuse import ghost_bytes
from storage.rows import Keys, Positions, Rows
from storage.ssd import SsdTier

_BUFFER_SHARE, _LARGEST_BUFFER = 96, 4 << 20
_STAGING_SHARE, _LARGEST_STAGING = 32, 16 << 20
_SLACK_SHARE = 128
_LEAST_ROWS = 16
_AHEAD_SHARE = 8
_MARGIN = 1.15
_OVERHEAD = overhead_bytes(1000) / 1000


@dataclass(frozen=True)
class Sizes:
    """Budgets of one table in bytes; hbm is None when there is no third level. ghost: what of the
    RAM a ghost takes.
    """

    ram: int
    hbm: int | None
    ghost: int = 0


class Stack:
    """One table's tiers. ``top`` is the cache where rows are worked on, ``tiers`` all of them;
    ``step`` is the optimizer's last one, 0 before the first; ``doorkeeper`` says which keys get a
    row, None for all: a row there has a step of 1 or more, which tells it from a key without one.

    Raises: ConfigError when a budget holds fewer than 16 rows beside what is fixed.
    """

    def __init__(
        self,
        table: Table,
        log: BlockLog,
        sizes: Sizes,
        *,
        device: torch.device,
        policy: str,
        step: int = 0,
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        self.table = table
        self.step = step
        self.doorkeeper = doorkeeper
        self.budget = Budget(sizes.ram, f"--ram for table {table.name!r}")
        buffer = min(_LARGEST_BUFFER, sizes.ram // _BUFFER_SHARE)
        self.ssd = SsdTier(table.name, table.shape, log, buffer_bytes=buffer)
        self._staging = min(_LARGEST_STAGING, sizes.ram // _STAGING_SHARE)
        self._policy = policy
        self._ghost = sizes.ghost
        self._overhead = overhead_bytes(1000, policy) / 1000
        self._hold("ssd", self.ssd.memory_bytes)
        self._hold("staging", self._staging)
        if sizes.ghost:
            self._hold("ghost", sizes.ghost)
        if doorkeeper is not None:
            self._hold("admission", bytes_held(table))
        self._caches(sizes, device)

    @property
    def tiers(self) -> tuple[CacheTier | SsdTier, ...]:
        """From the top down."""
        return (*self.caches, self.ssd)

    @property
    def dirty_rows(self) -> int:
        """Rows that the log does not hold, at most."""
        return sum(cache.dirty_rows for cache in self.caches)

    def put(self, rows: Rows) -> None:
        """Set whole rows; those marked dirty are part of the table from then on."""
        if self.doorkeeper is not None:
            rows = replace(rows, steps=np.maximum(rows.steps, np.uint32(1)))
        self.hierarchy.write(rows)

    def delete(self, keys: Keys) -> None:
        """Forget rows on every tier, and that their keys ever came. None of them may be pinned."""
        self.hierarchy.delete(keys)
        if self.doorkeeper is not None:
            self.doorkeeper.forget(keys)

    def unpin(self, positions: Positions) -> None:
        """Let go of a working set; keys that have no row leave first."""
        self.hierarchy.unpin(positions)
        if self.doorkeeper is not None:
            self.top.demote_fresh(positions)

    def report(self) -> dict[str, Any]:
        """Figures of this table as JSON values."""
        tiers = [
            {"tier": tier.name, "rows": len(tier), **tier.stats.report()} for tier in self.tiers
        ]
        for cache, tier in zip(self.caches, tiers, strict=False):
            tier["capacity"] = cache.limit
        seen = self.hierarchy.first_seen
        memory = {"total": self.budget.total, "peak": self.budget.peak, **self.budget.parts}
        return {
            "tiers": tiers,
            "first_seen": {"accesses": seen.accesses, "keys": seen.keys},
            "ram_bytes": memory,
            "log": self.ssd.report(),
            **({} if self.doorkeeper is None else {"admission": self.doorkeeper.report()}),
        }

    def look_ahead(self, uses: int, keys: int) -> None:
        """Know so many uses of different keys in coming batches, fewer where RAM is short, or none.

        The bytes come out of the cache in RAM. `look_no_further` gives them back.
        """
        fixed, most = look_ahead_bytes(self.top.limit, 0, 0), self.budget.total // _AHEAD_SHARE
        share = min(1.0, (most - fixed) / (look_ahead_bytes(self.top.limit, uses, keys) - fixed))
        uses, keys = int(share * uses), int(share * keys)
        size = look_ahead_bytes(self.top.limit, uses, keys)
        if keys > 0 and self._lender.lend(size):
            self.budget.hold("look-ahead", size)
            self.hierarchy.ahead = LookAhead(self.top, uses, keys)

    def look_no_further(self) -> None:
        """Keep no row for coming batches."""
        if self.hierarchy.ahead is not None:
            self.hierarchy.ahead.end()
            self.hierarchy.ahead = None
            self.budget.hold("look-ahead", 0)
            self._lender.take_back()

    @property
    def _lender(self) -> Hierarchy:
        """The part of the stack that shares the RAM budget."""
        below = self.hierarchy.below
        return below if isinstance(below, Hierarchy) else self.hierarchy

    def _caches(self, sizes: Sizes, device: torch.device) -> None:
        if sizes.hbm is None:
            array = self._float_row_bytes
            self.top = self._cache("ram", array, self._room(), device)
            self.caches: tuple[CacheTier, ...] = (self.top,)
            self.hierarchy = self._stacked(self.top, self.ssd, self.budget)
            return
        rows = sizes.hbm // self._float_row_bytes
        self.top = self._make("hbm", self._bounded(rows, "--hbm"), device, coded=False)
        self._hold("hbm index", overhead_bytes(self.top.limit, self._policy))
        row = self._float_row_bytes if self._plain else self.table.shape.record_bytes
        ram = self._cache("ram", row, self._room(), torch.device("cpu"), coded=not self._plain)
        self.caches = (self.top, ram)
        lower = self._stacked(ram, self.ssd, self.budget)
        self.hierarchy = self._stacked(self.top, lower, None)

    @property
    def _plain(self) -> bool:
        return self.table.dtype == "float32"

    @property
    def _float_row_bytes(self) -> int:
        return 4 * self.table.width

    def _room(self) -> int:
        """Bytes of the RAM budget that a cache may take."""
        return self.budget.free - self.budget.total // _SLACK_SHARE

    def _cache(
        self, name: str, row_bytes: int, room: int, device: torch.device, *, coded: bool = False
    ) -> CacheTier:
        rows = int(room / (row_bytes + self._overhead + ENTRY_BYTES)) - 1
        if rows >= _LEAST_ROWS:  # some overhead comes in powers of two
            overhead = overhead_bytes(rows, self._policy) / rows
            rows = min(rows, int(room / (row_bytes + overhead + ENTRY_BYTES)) - 1)
        return self._make(name, self._bounded(rows, "--ram"), device, coded=coded)

    def _make(self, name: str, rows: int, device: torch.device, *, coded: bool) -> CacheTier:
        table, shape = self.table, self.table.shape
        array: RowArray = (
            CodedArray(rows, table.dim, table.state_width, shape.codec)
            if coded
            else FloatArray(rows, table.dim, table.state_width, device)
        )
        return CacheTier(name, array, capacity=rows, width=table.width, policy=self._policy)

    def _bounded(self, rows: int, option: str) -> int:
        """As many rows as there is room for, but no more than the table has."""
        if rows < _LEAST_ROWS:
            raise self._too_little(option, rows)
        return rows if self.table.rows is None else min(rows, self.table.rows)

    def _hold(self, part: str, size: int) -> None:
        if size > self.budget.free:
            raise self._too_little("--ram", 0)
        self.budget.hold(part, size)

    def _too_little(self, option: str, rows: int) -> ConfigError:
        """The error that names a budget of ``option`` with which 1024 rows fit."""
        row, fixed = self._float_row_bytes, 0.0
        if option == "--ram":
            row += int(self._overhead) + ENTRY_BYTES
            # What grows with the budget is a known share of it: buffers, staging and slack.
            fixed = self.ssd.memory_bytes + self.budget.parts.get("hbm index", 0) + self._ghost
            fixed += bytes_held(self.table)
            fixed += 1024 * self._overhead
        return ConfigError(
            f"{option} leaves table {self.table.name!r} room for {max(0, rows)} rows beside "
            f"index and buffers; expected {_LEAST_ROWS} or more; give each table at least "
            f"{show_size(int(_MARGIN * (fixed + 1024 * row)))}"
        )

    def _stacked(self, cache: CacheTier, below: Any, budget: Budget | None) -> Hierarchy:
        return Hierarchy(
            cache, below, budget=budget, shape=self.table.shape, fresh=self.table.fresh,
            staging_bytes=self._staging, passes_fresh=self.doorkeeper is None,
        )  # fmt: skip


def make_stacks(
    tables: Iterable[Table],
    log: BlockLog,
    sizes: Mapping[str, Sizes],
    cut: Cut,
    doorkeepers: Mapping[str, Doorkeeper],
    device: torch.device,
    policy: str,
) -> dict[str, Stack]:
    """The stacks of a store by table, as of ``cut``."""
    return {
        table.name: Stack(
            table, log, sizes[table.name], step=cut.steps.get(table.name, 0),
            doorkeeper=doorkeepers.get(table.name), device=device, policy=policy,
        )
        for table in tables
    }  # fmt: skip


def sizes(
    tables: Sequence[Table], ram: int, hbm: int | None, ghost: bool = False
) -> dict[str, Sizes]:
    """Budgets by table, of bytes for all tables together. ghost: whether each has one."""
    in_ram = divide(ram, tables)
    in_hbm = None if hbm is None else divide(hbm, tables)
    return {
        table.name: Sizes(
            in_ram[table.name],
            None if in_hbm is None else in_hbm[table.name],
            ghost_bytes(in_ram[table.name]) if ghost else 0,
        )
        for table in tables
    }


def divide(total: int, tables: Sequence[Table]) -> Mapping[str, int]:
    """Shares of ``total`` bytes by table: those of known size get at most what all their rows need.

    The rest goes in equal parts to the others, since nobody knows how large they will grow.
    """
    shares: dict[str, int] = {}
    waiting = sorted(tables, key=_most_bytes)
    left = total
    for position, table in enumerate(waiting):
        shares[table.name] = min(left // (len(waiting) - position), _most_bytes(table))
        left -= shares[table.name]
    for name in shares:
        # What tables of known size leave over harms nobody; it saves a WorkingSetError at the edge.
        shares[name] += left // len(shares)
    return shares


def _most_bytes(table: Table) -> int:
    """Bytes with which every row of the table stays in RAM, index and buffers included."""
    if table.rows is None:
        return 1 << 62
    rows = int(1.3 * table.rows * (4 * table.width + _OVERHEAD + 2 * ENTRY_BYTES))
    return rows + (4 << 20) + bytes_held(table)
