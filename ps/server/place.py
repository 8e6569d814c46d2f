"""Place: which shard of how many a server is, and that its folder is that one's.

Threads: a value; `claim` is the owner's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ps.checkpoint import PLACE_FACT
from ps.partition import Partition
from ps.store import Store
from storage.errors import ConfigError, MismatchError


@dataclass(frozen=True)
class Place:
    """Which shard this is. shard: from 0. shards: how many there are."""

    shard: int
    shards: int

    def __post_init__(self) -> None:
        Partition(self.shards)
        if not 0 <= self.shard < self.shards:
            raise ConfigError(f"--shard: expected I/N with I from 0 to N - 1, got {self.shard}")

    def claim(self, store: Store) -> None:
        """Note in a store whose it is. Raises: MismatchError where it is another shard's."""
        mine = {"shard": self.shard, "shards": self.shards}
        found = store.fact(PLACE_FACT)
        if found is None:
            store.commit({PLACE_FACT: json.dumps(mine).encode()})
        elif (was := json.loads(found)) != mine:
            raise MismatchError(
                f"{store.path}: this folder has shard {was['shard']}/{was['shards']}, expected "
                f"{self.shard}/{self.shards}; give it the folder of its own"
            )
