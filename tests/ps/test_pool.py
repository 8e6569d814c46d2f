"""Pool: every row belongs to one range, whatever the number of threads."""

from __future__ import annotations

import itertools
import threading

import pytest

from ps.pool import Pool


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2047, 2048, 10_001, 100_000])
def test_the_ranges_cover_all_once_and_in_order(threads: int, count: int) -> None:
    pool = Pool(threads)
    try:
        ranges = pool.run(lambda base, begin, end: (base + begin, base + end), count, 5)
    finally:
        pool.close()
    assert len(ranges) <= threads
    assert ranges[0][0] == 5
    assert ranges[-1][1] == 5 + count
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))


def test_a_pool_of_one_starts_no_thread() -> None:
    before = threading.active_count()
    pool = Pool(1)
    assert len(pool.run(lambda begin, end: end - begin, 1 << 20)) == 1
    assert threading.active_count() == before
    pool.close()


def test_what_a_kernel_raises_in_a_thread_is_raised_here() -> None:
    def fail_late(begin: int, end: int) -> None:
        if begin > 0:
            raise ZeroDivisionError

    pool = Pool(2)
    try:
        with pytest.raises(ZeroDivisionError):
            pool.run(fail_late, 1 << 16)
    finally:
        pool.close()
        pool.close()
