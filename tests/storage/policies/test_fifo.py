"""Queue: first in, first out, whatever is used in between."""

from __future__ import annotations

from tests.storage.replaying import assert_as


def fifo(capacity: int, keys: list[int]) -> list[bool]:
    held: list[int] = []
    found = []
    for key in keys:
        found.append(key in held)
        if key not in held:
            held = [*held, key][-capacity:]
    return found


def test_hits_are_those_of_a_list() -> None:
    assert_as(fifo, "fifo")
