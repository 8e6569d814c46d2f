"""Identity: who a worker is to the shards: client, incarnation, and place among the workers.

Threads: a value.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace

from ps.wire.terrace_pb2 import Session


def _token() -> int:
    return secrets.randbits(63) | 1


@dataclass(frozen=True)
class Identity:
    """One process of a worker. job: what the workers of one training share; the client's name is
    made of it and the rank. round: one start of all workers. incarnation: 0 before it is known.
    """

    job: str
    rank: int = 0
    world: int = 1
    round: str = ""
    incarnation: int = 0
    token: int = field(default_factory=_token)

    @property
    def client(self) -> str:
        """The worker's name: the same after it was started anew."""
        return f"{self.job}-{self.rank}"

    @property
    def session(self) -> Session:
        """As requests carry it."""
        return Session(client=self.client, incarnation=self.incarnation)

    def reborn(self, incarnation: int) -> Identity:
        """The same worker with this incarnation, and a token of its own."""
        return replace(self, incarnation=incarnation, token=_token())
