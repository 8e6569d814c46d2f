"""Replicas: a worker's top tier of one table in mode async: copies of embeddings that shards own.

A copy is as new as the clock it was pulled at: it has all changes of the first so many steps of
every worker. One that is too old is pulled again, into the same place. Copies are never written
back: gradients go to the shards. What is evicted is just dropped.

The step of a position (`CacheTier.steps`) is that clock plus 1, and 0 for a place without a copy.
A copy that came for a row which an earlier batch still uses is *promised*: batches that are staged
ahead count on it, but it is in place only once the batch it came for is entered.

Threads: as the tier's; `fill` writes to positions that its caller has pinned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ps.table import Table
from storage.array import FloatArray
from storage.budget import show_size
from storage.cache import CacheTier, overhead_bytes
from storage.errors import ConfigError, WorkingSetError
from storage.rows import Counts, Floats, Keys, Mask, Positions

_LEAST_ROWS = 16
_MARGIN = 1.25


class Replicas:
    """See the module's docstring. size: budget in bytes, on ``device`` but for the index.

    ages: observed steps that a use was behind, by number of uses; the last is "so many or more".
    Raises: ConfigError when fewer than 16 rows fit.
    """

    def __init__(self, table: Table, size: int, *, device: torch.device, policy: str) -> None:
        self.table = table
        row = self._row_bytes = 4 * table.dim + 4 + overhead_bytes(1000, policy) / 1000
        rows = int(size / row)
        if table.rows is not None:
            rows = min(rows, max(_LEAST_ROWS, table.rows))
        if rows < _LEAST_ROWS:
            raise ConfigError(
                f"table {table.name!r}: {show_size(size)} hold {rows} copies of rows, expected "
                f"{_LEAST_ROWS} or more; give the worker's top tier more memory"
            )
        array = FloatArray(rows, table.dim, 0, device)
        name = "ram" if device.type == "cpu" else "hbm"
        self.top = CacheTier(name, array, capacity=rows, width=table.dim, policy=policy)
        self.ages = np.zeros(65, np.int64)
        self._promised = np.zeros(rows, np.uint32)  # by position, as `CacheTier.steps`

    def ensure_room(self, keys: Keys) -> None:
        """Raises: WorkingSetError when these rows and all that are pinned do not fit together."""
        positions = self.top.place(keys)
        there = positions[positions >= 0]
        used = int(np.count_nonzero(~self.top.unpinned(there)))
        if len(keys) - used > self.top.room:
            need = int(_MARGIN * self._row_bytes * (len(keys) + self.top.pinned))
            raise WorkingSetError(
                f"table {self.table.name!r}: expected room for copies of {len(keys)} rows beside "
                f"{self.top.pinned} in use, but the worker's top tier holds {self.top.limit}; give "
                f"this table's share {show_size(need)} ({need} bytes) or use a smaller batch",
                needed_bytes=need,
            )

    def pin(
        self, keys: Keys, counts: Counts, least: int, *, ahead: bool = False
    ) -> tuple[Positions, Mask, Mask]:
        """Places for a batch's rows, pinned; which to pull; and which of those others use now.

        keys: (U,) uint64, unique; counts: (U,) int32 uses. least: clock that copies must have.
        ahead: promised ones will do. One `unpin` undoes it. There is room (`ensure_room`).
        """
        top = self.top
        positions = top.place(keys)
        held = positions >= 0
        there = positions[held]
        used = np.zeros(len(keys), np.bool_)
        used[held] = ~top.unpinned(there)
        fresh = np.zeros(len(keys), np.bool_)
        fresh[held] = self._steps(there, ahead) > least
        top.use(positions, counts)
        stale = held & ~fresh
        top.stats.key_hits -= int(np.count_nonzero(stale))
        top.stats.access_hits -= int(counts[stale].sum())
        top.pin(there)
        missing = np.flatnonzero(~held)
        taken = top.take(keys[missing])
        top.pin(taken)
        positions[missing] = taken
        self._promised[taken] = 0
        return positions, ~fresh, used & ~fresh

    def fill(self, positions: Positions, values: Floats) -> None:
        """Put copies where they belong. values: (n, D) float32."""
        self.top.array.scatter(positions, values)

    def mark(self, positions: Positions, clock: int) -> None:
        """Copies at these positions have this clock; -1: there is none, nor is one promised."""
        self.top.steps[positions] = clock + 1
        if clock < 0:
            self._promised[positions] = 0

    def promise(self, positions: Positions, clock: int) -> None:
        """Copies of this clock have come for these positions; -1: they will not be put there."""
        self._promised[positions] = clock + 1

    def unpin(self, positions: Positions) -> None:
        """Let go of what one `pin` returned."""
        self.top.unpin(positions)

    def forget(self, keys: Keys | None = None) -> None:
        """These rows (None: all) were changed in another way: pull them again."""
        positions = self.top.occupied() if keys is None else self.top.place(keys)
        self.mark(positions[positions >= 0], -1)

    def observe(self, positions: Positions, clock: int, *, ahead: bool = False) -> None:
        """Count how many steps these copies are behind ``clock``, which they are used at."""
        behind = np.maximum(0, clock + 1 - self._steps(positions, ahead).astype(np.int64))
        last = len(self.ages) - 1
        self.ages += np.bincount(np.minimum(behind, last), minlength=last + 1)

    def report(self) -> dict[str, Any]:
        """Figures as JSON values. staleness: uses of rows by the steps they were behind."""
        top, seen = self.top, np.flatnonzero(self.ages).tolist()
        tier = {"tier": top.name, "rows": len(top), "capacity": top.limit, **top.stats.report()}
        return {"tiers": [tier], "staleness": {str(age): int(self.ages[age]) for age in seen}}

    def _steps(self, positions: Positions, ahead: bool) -> NDArray[np.uint32]:
        steps: NDArray[np.uint32] = self.top.steps[positions]
        return np.maximum(steps, self._promised[positions]) if ahead else steps
