"""Parcel: pieces that come late, twice, out of order or of another attempt."""

from __future__ import annotations

import numpy as np
import pytest

from ps.server.parcel import MOST_BYTES, Parcel
from storage.errors import RefusedError

DATA = np.random.default_rng(1).bytes(1000)


def pieces(data: bytes = DATA, size: int = 300) -> list[tuple[int, bytes]]:
    return [(at, data[at : at + size]) for at in range(0, len(data), size)]


def fill(parcel: Parcel, data: bytes = DATA, key: object = "a") -> None:
    for at, piece in pieces(data):
        parcel.take(key, at, len(data), piece)


def test_pieces_in_order_are_the_whole() -> None:
    parcel = Parcel()
    fill(parcel)
    assert parcel.is_of("a")
    assert not parcel.is_of("b")
    assert parcel.whole("a", 1000) == DATA
    assert parcel.whole("a", 1000) == DATA  # until it is cleared
    parcel.clear()
    assert parcel.whole("a", 0) == b""
    with pytest.raises(RefusedError, match="expected 1000 bytes in pieces, got 0"):
        parcel.whole("a", 1000)


def test_a_piece_that_comes_again_changes_nothing() -> None:
    parcel = Parcel()
    for at, piece in pieces():
        parcel.take("a", at, 1000, piece)
        for earlier, same in pieces()[: at // 300 + 1]:
            parcel.take("a", earlier, 1000, same)
    assert parcel.whole("a", 1000) == DATA


def test_a_piece_before_its_turn_is_refused() -> None:
    parcel = Parcel()
    parcel.take("a", 0, 1000, DATA[:300])
    with pytest.raises(RefusedError, match="the piece at 300, got 600"):
        parcel.take("a", 600, 1000, DATA[600:900])
    with pytest.raises(RefusedError, match="the piece at 0, got 300"):
        parcel.take("b", 300, 1000, DATA[300:600])
    with pytest.raises(RefusedError, match="expected 1000 bytes in pieces, got 300"):
        parcel.whole("a", 1000)
    with pytest.raises(RefusedError, match="got 0"):
        parcel.whole("b", 1000)


def test_sizes_that_cannot_be_meant_are_refused() -> None:
    parcel = Parcel()
    with pytest.raises(RefusedError, match="at most"):
        parcel.take("a", 0, MOST_BYTES + 1, b"")
    with pytest.raises(RefusedError, match="within 10 bytes"):
        parcel.take("a", 0, 10, DATA[:11])
    with pytest.raises(RefusedError, match="within 10 bytes"):
        parcel.take("a", 2**63, 10, b"")


def test_another_attempt_or_client_takes_its_place() -> None:
    parcel, other = Parcel(), DATA[:300] + DATA[::-1][:500]
    fill(parcel)
    fill(parcel, other)  # begins alike, is shorter
    assert parcel.whole("a", 800) == other
    fill(parcel, DATA, "b")
    assert parcel.whole("b", 1000) == DATA
    with pytest.raises(RefusedError):
        parcel.whole("a", 800)
