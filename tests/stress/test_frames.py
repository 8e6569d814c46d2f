"""Frames: those of calls are told from the protocol's own, however the bytes are cut."""

from __future__ import annotations

import pytest

from tests.stress.frames import Frames

DATA, HEADERS, SETTINGS, PING, WINDOW = 0x0, 0x1, 0x4, 0x6, 0x8


def frame(kind: int, size: int) -> bytes:
    return size.to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, 1]) + bytes(size)


SENT = [(SETTINGS, 6), (HEADERS, 40), (DATA, 300), (WINDOW, 4), (PING, 8), (DATA, 0)]


@pytest.mark.parametrize("chunk", [1, 2, 7, 9, 64, 10_000])
@pytest.mark.parametrize("from_client", [False, True])
def test_bytes_of_calls_are_told(chunk: int, from_client: bool) -> None:
    frames = Frames(from_client=from_client)
    data = b"".join(frame(kind, size) for kind, size in SENT)
    expected = [kind in (DATA, HEADERS) for kind, size in SENT for _ in range(9 + size)]
    if from_client:
        data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + data
        expected = [False] * 24 + expected
    told: list[bool] = []
    for start in range(0, len(data), chunk):
        for size, is_call in frames.feed(data[start : start + chunk]):
            told += [is_call] * size
    assert len(told) == len(data)
    if chunk >= len(data):
        assert told == expected
    # A header in pieces is known by its last byte, the first eight may have passed.
    position = 24 if from_client else 0
    for kind, size in SENT:
        assert told[position + 8 : position + 9 + size] == [kind in (DATA, HEADERS)] * (1 + size)
        position += 9 + size
