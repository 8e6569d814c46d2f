"""Coming: the batches that a prefetch loop has announced, and the look-ahead of each table.

A batch is announced when it is read and leaves when it is staged. Before the first is staged, each
table's look-ahead takes its memory out of the RAM budget: room for the keys announced by then and a
quarter more, an eighth of the budget at most. Where that is not to be had (rows are pinned, say)
the table goes without: nothing but hit rates depends on it.

Threads: those that stage, one at a time; `turn`, `pin` and `passed` in the planner's turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ps.planner import Planner
from ps.stack import Stack
from ps.workingset import Asked
from storage.keys import dedupe
from storage.rows import Positions

_SPARE = 1.25
# A row read ahead takes a place early. Synthetic Zipf 1.05, 16 MiB, sieve, 8 batches: 346,091 rows
# read without this bound, 313,291 with it, 310,897 where nothing is read ahead; 321,486 before.
_AHEAD_SHARE = 32
Batch = Mapping[str, Asked]


@dataclass(slots=True)
class _Announced:
    """A batch, its number, and the tables in whose look-ahead it is not yet."""

    batch: Batch
    number: int
    waiting: set[str] = field(default_factory=set)


class Coming:
    """See the module's docstring. stacks: those of the store now.

    ample: whether writing so many rows of a stack is far from filling the disk. Near that nothing
    is read ahead, since it pushes more out than the batch itself does.
    """

    def __init__(
        self,
        planner: Planner,
        stacks: Callable[[], Mapping[str, Stack]],
        ample: Callable[[Stack, int], bool],
    ) -> None:
        self._planner, self._stacks, self._ample = planner, stacks, ample
        self._announced: deque[_Announced] = deque()
        self._last = 0
        self._tried: set[str] = set()

    def announce(self, batch: Batch) -> None:
        """This batch will be staged after all that were announced before it."""
        self._last += 1
        self._announced.append(_Announced(batch, self._last, set(batch)))

    def turn(self, batch: Batch) -> int:
        """The number of a batch that is to be staged, once all that were announced are known.

        0 for one that was not announced. Twice is fine: nothing more happens then.
        """
        if not self._announced or self._announced[0].batch is not batch:
            return 0
        for name in batch:
            if name not in self._tried:
                self._tried.add(name)
                self._begin(name)
        self._enter()
        return self._announced[0].number

    def pin(self, name: str, asked: Asked, number: int) -> Positions:
        """`Hierarchy.pin` of one table's share of a batch with this number, as `turn` gave it."""
        stack = self._stacks()[name]
        ahead, most = stack.hierarchy.ahead, 0
        if ahead is not None and self._ample(stack, ahead.window.uses):
            most = min(ahead.window.uses, stack.top.limit // _AHEAD_SHARE)
        return stack.hierarchy.pin(asked.keys, asked.counts, number=number, most_ahead=most)

    def passed(self, number: int) -> None:
        """The first batch, if it has this number, is staged."""
        if number:
            for name in self._announced.popleft().batch:
                ahead = self._stacks()[name].hierarchy.ahead
                if ahead is not None:
                    ahead.passed(number)

    def give_up(self) -> bool:
        """Give the memory back to the caches, for the rest of this loop: whether there was any."""
        with self._planner:
            found = [one for one in self._stacks().values() if one.hierarchy.ahead is not None]
            for stack in found:
                stack.look_no_further()
            return bool(found)

    def end(self) -> None:
        """The loop is over: nothing is announced, and no row is kept for it."""
        self._announced.clear()
        self.give_up()
        self._tried.clear()
        self._last = 0

    def _begin(self, name: str) -> None:
        keys = np.concatenate([b.batch[name].keys for b in self._announced if name in b.batch])
        different = len(dedupe(keys)[0])
        self._stacks()[name].look_ahead(int(_SPARE * len(keys)), int(_SPARE * different))

    def _enter(self) -> None:
        """Tell each table's look-ahead of the batches that it has room for, in order."""
        full: set[str] = set()
        for one in self._announced:
            for name in one.waiting - full:
                ahead = self._stacks()[name].hierarchy.ahead
                if ahead is None or not ahead.enter(one.number, one.batch[name].keys):
                    full.add(name)
                else:
                    one.waiting.remove(name)
