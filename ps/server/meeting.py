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

    def come(self, rank: int, number: int, word: bytes) -> None:
        """A rank is here."""
        self.arrived[rank] = max(self.arrived.get(rank, 0), number)
        if rank == 0:
            self.words[number] = word
            for old in [n for n in self.words if n <= number - _WORDS]:
                del self.words[old]

    def missing(self, world: int, number: int) -> list[int]:
        """Ranks that have not come to this meeting."""
        return [rank for rank in range(world) if self.arrived.get(rank, 0) < number]


class Meetings:
    """See the module's docstring; of one shard."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rounds: dict[tuple[str, str], _Round] = {}
        self._draining = False

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
            here.come(rank, number, word)
            return here.missing(world, number)

        with self._condition:
            missing()
            self._condition.notify_all()
            self._condition.wait_for(
                lambda: self._draining or not missing(), max(0.0, deadline - time.monotonic())
            )
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
            while len(self._rounds) >= _ROUNDS:
                del self._rounds[next(iter(self._rounds))]
            self._rounds[key] = _Round()
        return self._rounds[key]
