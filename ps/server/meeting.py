"""Meetings: points at which all workers of a job wait for each other, and hear what rank 0 says.

A checkpoint begins and ends with one. Each worker counts its meetings from 1 in a *round*, one
start of all workers. Nothing is kept on the disk: who comes to a later meeting has passed the
earlier ones, so a shard that was restarted in between lets those through who ask again.

Threads: any; every wait has a deadline.
"""

from __future__ import annotations

import threading
import time

from storage.errors import RefusedError, UnavailableError

MOST_WORD_BYTES = 1 << 16
_ROUNDS = 64


class Meetings:
    """See the module's docstring; of one shard."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rounds: dict[tuple[str, str], dict[int, tuple[int, bytes]]] = {}
        self._draining = False

    def meet(
        self,
        job: str,
        round_: str,
        *,
        rank: int,
        world: int,
        number: int,
        word: bytes,
        deadline: float,
    ) -> bytes:
        """Wait until ranks 0 to ``world`` - 1 came to this meeting: the word of rank 0.

        Raises: UnavailableError after the deadline, naming who is missing; RefusedError.
        """
        if len(word) > MOST_WORD_BYTES:
            raise RefusedError(f"meet: expected a word of {MOST_WORD_BYTES} bytes at most")
        with self._condition:
            ranks = self._round(job, round_)
            if ranks.get(rank, (0, b""))[0] <= number:
                ranks[rank] = (number, word)
            self._condition.notify_all()
            self._condition.wait_for(
                lambda: self._draining or not self._missing(ranks, world, number),
                max(0.0, deadline - time.monotonic()),
            )
            missing = self._missing(ranks, world, number)
            if missing:
                names = ", ".join(map(str, missing[:8]))
                why = "the shard is being stopped" if self._draining else "waited too long"
                raise UnavailableError(f"meeting {number}: {why}; ranks missing: {names}")
            return ranks[0][1]

    def drain(self) -> None:
        """End all waits, now and later: UnavailableError."""
        with self._condition:
            self._draining = True
            self._condition.notify_all()

    def _round(self, job: str, round_: str) -> dict[int, tuple[int, bytes]]:
        key = (job, round_)
        if key not in self._rounds:
            while len(self._rounds) >= _ROUNDS:
                del self._rounds[next(iter(self._rounds))]
            self._rounds[key] = {}
        return self._rounds[key]

    def _missing(self, ranks: dict[int, tuple[int, bytes]], world: int, number: int) -> list[int]:
        return [rank for rank in range(world) if ranks.get(rank, (0, b""))[0] < number]
