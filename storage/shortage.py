"""Shortage: the error that says how large a tier would have to be."""

from __future__ import annotations

from storage.address import ENTRY_BYTES
from storage.budget import Budget, show_size
from storage.cache import CacheTier, overhead_bytes
from storage.errors import WorkingSetError
from storage.tier import Lower


def too_small(
    top: CacheTier, rows: int, budget: Budget | None, below: Lower | None
) -> WorkingSetError:
    """The error for ``rows`` rows that do not fit beside what is pinned in ``top``.

    budget: that top and below share, or None.
    """
    need = (rows + top.pinned) * top.array.bytes_per_position
    if budget is not None and below is not None:
        need += (rows + top.pinned) * ENTRY_BYTES + overhead_bytes(rows + top.pinned)
        need += budget.used - budget.parts["cache"] + below.growth_bound(rows)
    need = int(1.25 * need)
    return WorkingSetError(
        f"tier {top.name!r}: expected room for {rows} rows beside {top.pinned} in use, "
        f"but it holds {top.limit}; give it {show_size(need)} ({need} bytes) or use a "
        f"smaller batch",
        needed_bytes=need,
    )
