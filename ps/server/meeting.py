"""Meetings: points at which all workers of a job wait for each other, and hear what rank 0 says.

A checkpoint begins and ends with one. Each worker counts its meetings from 1 in a *round*, one
start of all workers. Nothing is kept on the disk: who comes to a later meeting has passed the
earlier ones, so a shard that was restarted in between lets those through who ask again. Where a
worker was started anew (`forget`), nobody counts as having come but those that wait right now.

Threads: any; every wait has a deadline.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from storage.errors import RefusedError, UnavailableError

MOST_WORD_BYTES = 1 << 16
_ROUNDS = 64
_WORDS = 8


@dataclass
class _Round:
    """arrived: the last meeting of each rank. words: of rank 0, by meeting."""

    arrived: dict[int, int] = field(default_factory=dict)
    words: dict[int, bytes] = field(default_factory=dict)

    def come(self, rank: int, number: int, word: bytes) -> bool:
        """A rank is here: whether that is news."""
        before = self.arrived.get(rank, 0)
        self.arrived[rank] = max(before, number)
        if rank == 0:
            self.words[number] = word
            for old in [n for n in self.words if n <= number - _WORDS]:
                del self.words[old]
        return before < number

    def missing(self, world: int, number: int) -> list[int]:
        """Ranks that have not come to this meeting."""
        return [rank for rank in range(world) if self.arrived.get(rank, 0) < number]


class Meetings:
    """See the module's docstring; of one shard."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rounds: dict[tuple[str, str], _Round] = {}
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._draining = False

    @property
    def waiting(self) -> int:
        """Calls that wait in a meeting."""
        with self._condition:
            return self._waiting.total()

    def meet(
        self,
        job: str,
        name: str,
        *,
        rank: int,
        world: int,
        number: int,
        word: bytes,
        deadline: float,
    ) -> bytes:
        """Wait until ranks 0 to ``world`` - 1 came to this meeting of a round: the word of rank 0.

        Raises: UnavailableError after the deadline, naming who is missing; RefusedError.
        """
        if len(word) > MOST_WORD_BYTES:
            raise RefusedError(f"meet: expected a word of {MOST_WORD_BYTES} bytes at most")

        def missing() -> list[int]:
            # Looked up each time: `forget` may have put another in its place.
            here = self._round(job, name)
            if here.come(rank, number, word):
                self._condition.notify_all()
            return here.missing(world, number)

        with self._condition:
            self._waiting[job, name] += 1
            try:
                self._condition.wait_for(
                    lambda: not missing() or self._draining, max(0.0, deadline - time.monotonic())
                )
            finally:
                self._waiting[job, name] -= 1
                self._waiting += Counter()  # without those at 0
            if away := missing():
                names = ", ".join(map(str, away[:8]))
                why = "the shard is being stopped" if self._draining else "waited too long"
                raise UnavailableError(f"meeting {number}: {why}; ranks missing: {names}")
            return self._round(job, name).words.get(number, b"")

    def forget(self, job: str) -> None:
        """A worker of this job was started anew: who waits now is here, nobody else."""
        with self._condition:
            for key in [key for key in self._rounds if key[0] == job]:
                del self._rounds[key]
            self._condition.notify_all()

    def drain(self) -> None:
        """End all waits, now and later: UnavailableError."""
        with self._condition:
            self._draining = True
            self._condition.notify_all()

    def _round(self, job: str, name: str) -> _Round:
        key = (job, name)
        if key not in self._rounds:
            # Never one that is waited in: those who wait would put each other out in turn.
            idle = [each for each in self._rounds if not self._waiting[each]]
            for old in idle[: max(0, len(self._rounds) - _ROUNDS + 1)]:
                del self._rounds[old]
            self._rounds[key] = _Round()
        return self._rounds[key]
