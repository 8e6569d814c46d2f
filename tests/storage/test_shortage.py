"""The error of a tier too small names rows and bytes; that they would do is in test_hierarchy."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from storage.log import BlockLog
from storage.shortage import too_small
from tests.storage.test_tier import make_stack


def test_it_names_what_does_not_fit_and_asks_for_more_where_the_index_shares_the_budget(
    tmp_path: Path,
) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        stack = make_stack(log, 100)
        cache, ssd = stack.caches[0], stack.ssd
        alone = too_small(cache, 500, None, ssd)
        shared = too_small(cache, 500, stack.budget, ssd)
    assert "'ram'" in str(alone) and "500 rows beside 0 in use" in str(alone)
    assert str(alone.needed_bytes) in str(alone) and "\n" not in str(alone)
    assert alone.needed_bytes == int(1.25 * 500 * cache.array.bytes_per_position)
    assert shared.needed_bytes > alone.needed_bytes + ssd.memory_bytes
