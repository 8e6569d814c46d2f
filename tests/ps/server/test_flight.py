"""Flight: no more bytes at once than the bound, but for one piece alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ps.server.flight import Flight
from storage.errors import OverloadedError


def test_what_would_go_beyond_the_bound_is_refused_at_once() -> None:
    flight = Flight(100)
    flight.take(60, "a")
    flight.take(40, "b")
    with pytest.raises(OverloadedError, match="100 bytes of messages are held for all") as caught:
        flight.take(1, "b")
    assert caught.value.retry_seconds > 0
    assert flight.held == 100
    flight.give(60, "a")
    flight.take(60, "c")
    flight.give(60, "c")
    flight.give(40, "b")
    assert flight.held == 0


def test_one_peer_leaves_a_quarter_to_others() -> None:
    flight = Flight(100)
    flight.take(70, "a")
    with pytest.raises(OverloadedError, match="70 bytes of messages are held for this client"):
        flight.take(6, "a")
    flight.take(5, "a")
    flight.take(25, "b")
    flight.give(75, "a")
    flight.take(75, "a")
    assert flight.held == 100


def test_one_piece_that_is_larger_comes_alone() -> None:
    flight = Flight(100)
    flight.take(1000)
    with pytest.raises(OverloadedError):
        flight.take(1)
    flight.give(1000)
    flight.take(1)
    with pytest.raises(OverloadedError):
        flight.take(1000)


def test_nothing_is_lost_between_threads() -> None:
    flight = Flight(50)

    def work(size: int) -> int:
        done = 0
        for _ in range(2000):
            try:
                flight.take(size)
            except OverloadedError:
                continue
            assert 0 < flight.held <= 50
            flight.give(size)
            done += 1
        return done

    with ThreadPoolExecutor(8, "terrace-test") as pool:
        assert sum(pool.map(work, range(10, 18), timeout=30)) > 0
    assert flight.held == 0
