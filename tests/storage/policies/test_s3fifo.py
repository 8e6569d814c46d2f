"""S3Fifo: the paper's algorithm with ordered dicts from key to uses."""

from __future__ import annotations

from collections import OrderedDict

from tests.storage.replaying import assert_as


class Oracle:
    def __init__(self, capacity: int) -> None:
        self.capacity, self.most_small = capacity, capacity // 10
        self.most_ghosts = capacity * 9 // 10
        self.small: OrderedDict[int, int] = OrderedDict()
        self.main: OrderedDict[int, int] = OrderedDict()
        self.ghosts: OrderedDict[int, None] = OrderedDict()
        self.full = False

    def access(self, key: int) -> bool:
        for queue in (self.small, self.main):
            if key in queue:
                queue[key] += 1
                return True
        ghost = self.ghosts.pop(key, 0) is None
        while len(self.small) + len(self.main) >= self.capacity:
            self.full = True
            too_long = len(self.main) > self.capacity - self.most_small
            (self.evict_main if too_long or not self.small else self.evict_small)()
        early = not self.full and len(self.small) >= self.most_small
        (self.main if ghost or early else self.small)[key] = 0
        return False

    def evict_small(self) -> None:
        while self.small:
            key, uses = self.small.popitem(last=False)
            if uses < 2:
                self.ghosts[key] = None
                if len(self.ghosts) > self.most_ghosts:
                    self.ghosts.popitem(last=False)
                return
            self.main[key] = 0

    def evict_main(self) -> None:
        while True:
            key, uses = self.main.popitem(last=False)
            if uses == 0:
                return
            self.main[key] = min(uses, 3) - 1


def s3fifo(capacity: int, keys: list[int]) -> list[bool]:
    oracle = Oracle(capacity)
    return [oracle.access(key) for key in keys]


def test_hits_are_those_of_ordered_dicts() -> None:
    assert_as(s3fifo, "s3fifo")
