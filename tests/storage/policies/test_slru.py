"""Slru: four ordered dicts; and that a use makes nobody leave."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from storage.policy import make_policy
from tests.storage.replaying import assert_as

SEGMENTS = 4


def slru(capacity: int, keys: list[int]) -> list[bool]:
    most = capacity // SEGMENTS
    segments: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(SEGMENTS)]
    found = []
    for key in keys:
        at = next((i for i, segment in enumerate(segments) if key in segment), None)
        found.append(at is not None)
        if at is not None:
            del segments[at][key]
            at = min(at + 1, SEGMENTS - 1)
            segments[at][key] = None
            while at > 0 and len(segments[at]) > most:
                segments[at - 1][segments[at].popitem(last=False)[0]] = None
                at -= 1
            continue
        if sum(map(len, segments)) == capacity:
            next(segment for segment in segments if segment).popitem(last=False)
        at = next((i for i, segment in enumerate(segments) if len(segment) < most), 0)
        segments[at][key] = None
    return found


def test_hits_are_those_of_ordered_dicts() -> None:
    assert_as(slru, "slru")


def test_segments_that_shrink_give_what_is_too_much_to_the_one_below() -> None:
    policy, nobody = make_policy("slru", 8), np.zeros(8, np.uint16)
    policy.insert(np.arange(4))
    policy.touch(np.arange(2))
    policy.touch(np.arange(2))
    policy.resize(4)
    assert policy.victims(9, nobody).tolist() == [2, 3, 0, 1]
