"""TinyLfu: a window, two lists and a sketch in plain Python; what the sketch promises."""

from __future__ import annotations

from collections import Counter, OrderedDict

import numpy as np

from storage.keys import mix_keys
from storage.policies.tinylfu import _count, _frequency
from storage.policy import make_policy
from tests.storage.replaying import assert_as, skewed


class Sketch:
    def __init__(self, capacity: int) -> None:
        self.columns = 1 << max(4, (capacity - 1).bit_length())
        self.counters = [[0] * self.columns for _ in range(4)]
        self.counted, self.sample = 0, 10 * capacity

    def places(self, key: int) -> list[tuple[int, int]]:
        bits = int(mix_keys(np.array([key], np.uint64))[0])
        rows = np.array([(bits + row) % 2**64 for row in range(4)], np.uint64)
        columns = mix_keys(rows) & np.uint64(self.columns - 1)
        return [(row, int(column)) for row, column in enumerate(columns)]

    def count(self, key: int) -> None:
        for row, column in self.places(key):
            self.counters[row][column] = min(self.counters[row][column] + 1, 15)
        self.counted += 1
        if self.counted >= self.sample:
            self.counters = [[count // 2 for count in row] for row in self.counters]
            self.counted //= 2

    def frequency(self, key: int) -> int:
        return min(self.counters[row][column] for row, column in self.places(key))


def tinylfu(capacity: int, keys: list[int]) -> list[bool]:
    sketch, found = Sketch(capacity), []
    window: OrderedDict[int, None] = OrderedDict()
    probation: OrderedDict[int, None] = OrderedDict()
    protected: OrderedDict[int, None] = OrderedDict()
    most_window = max(capacity // 100, 1)
    most_protected = (capacity - most_window) * 4 // 5
    for key in keys:
        found.append(any(key in part for part in (window, probation, protected)))
        if not found[-1]:
            if len(window) + len(probation) + len(protected) == capacity:
                candidate = next(iter(window)) if len(window) >= most_window else None
                rest = probation or protected
                if not rest:
                    window.popitem(last=False)
                else:
                    victim = next(iter(rest))
                    if candidate is None:
                        del rest[victim]
                    elif sketch.frequency(candidate) > sketch.frequency(victim):
                        del rest[victim]
                        del window[candidate]
                        probation[candidate] = None
                    else:
                        del window[candidate]
            sketch.count(key)
            window[key] = None
            if len(window) > most_window:
                probation[window.popitem(last=False)[0]] = None
            continue
        sketch.count(key)
        if key in window:
            window.move_to_end(key)
            continue
        probation.pop(key, None)
        protected[key] = None
        protected.move_to_end(key)
        if len(protected) > most_protected:
            probation[protected.popitem(last=False)[0]] = None
    return found


def test_hits_are_those_of_ordered_dicts_and_a_sketch() -> None:
    assert_as(tinylfu, "w-tinylfu")


def test_the_sketch_never_counts_less_than_there_was_until_it_is_halved() -> None:
    state = make_policy("w-tinylfu", 100).state
    keys = skewed(1, 900, 60)
    for key in keys:
        _count(state, np.uint64(key))
    for key, count in Counter(keys).items():
        assert _frequency(state, np.uint64(key)) >= min(count, 15)
    for key in skewed(2, 100, 60):
        _count(state, np.uint64(key))
    assert state.sketch.max() <= 8 and state.counted[0] == 500
