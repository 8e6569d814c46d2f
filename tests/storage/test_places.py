"""Places: what was noted is known, in the memory that was announced."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import ps
from storage.places import Places


def test_what_was_noted_is_known_where_there_is_room() -> None:
    places = Places()
    numbers = np.array([0, 4095, 4096, 9000, 20_000])
    assert places.of(numbers).tolist() == [0] * 5
    places.reserve(0, 9001)
    places.note(numbers, np.arange(1, 6, dtype=np.uint32))
    assert places.of(numbers).tolist() == [1, 2, 3, 4, 0]
    places.release(4096)
    assert places.of(numbers).tolist() == [0, 0, 3, 4, 0]
    places.reserve(0, 9001)  # what is gone does not come back
    assert places.of(numbers).tolist() == [0, 0, 3, 4, 0]


def test_memory_is_what_was_announced() -> None:
    places = Places()
    for begin, end in ((0, 1), (0, 5000), (3000, 100_000), (0, 100_000)):
        before, bound = places.bytes, places.growth_bound(begin, end)
        places.reserve(begin, end)
        assert places.bytes - before <= bound
        assert places.growth_bound(begin, end) == 0
    assert places.bytes < 5 * 100_000


def test_a_store_knows_all_its_blocks_once_they_are_written_and_when_it_is_opened(
    tmp_path: Path,
) -> None:
    table = ps.Table("ads", dim=64, optimizer=ps.SGD(lr=1.0), init=ps.Zeros())
    for tables in ([table], None):
        with ps.open(tmp_path, tables, ram="8MiB") as store:
            if tables:
                store.write("ads", np.arange(50_000), np.ones((50_000, 64)))
                store.cut()
            tier = store.stacks["ads"].ssd
            assert (tier.segments.places.of(np.arange(tier.end)) > 0).all()
