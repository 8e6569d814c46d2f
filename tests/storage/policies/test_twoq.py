"""TwoQ: the paper's full version with ordered dicts."""

from __future__ import annotations

from collections import OrderedDict

from tests.storage.replaying import assert_as


def twoq(capacity: int, keys: list[int]) -> list[bool]:
    most_in, most_out = capacity // 4, capacity // 2
    came_in: OrderedDict[int, None] = OrderedDict()
    gone_out: OrderedDict[int, None] = OrderedDict()
    main: OrderedDict[int, None] = OrderedDict()
    found = []
    for key in keys:
        found.append(key in came_in or key in main)
        if key in main:
            main.move_to_end(key)
        if found[-1]:
            continue
        ghost = gone_out.pop(key, 0) is None
        if len(came_in) + len(main) == capacity:
            if len(came_in) > most_in or not main:
                left = came_in.popitem(last=False)[0]
                gone_out[left] = None
                if len(gone_out) > most_out:
                    gone_out.popitem(last=False)
            else:
                main.popitem(last=False)
        (main if ghost else came_in)[key] = None
    return found


def test_hits_are_those_of_ordered_dicts() -> None:
    assert_as(twoq, "2q")
