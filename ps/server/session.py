"""Session: what a shard knows of one client, in memory and in a cut.

Threads: a record; `ps.server.sessions` guards it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from storage.errors import CorruptError, FencedError, RefusedError

SAVED = (
    "client", "incarnation", "token", "rank", "world", "applied", "clock", "closed", "fenced"
)  # fmt: skip
"""Fields that a cut has."""

FENCE = ("client", "incarnation", "token", "rank", "world", "fenced")
"""Fields that are saved at once, outside of cuts."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(slots=True)
class Session:
    """One client. rank, world: among the workers of its job. applied, durable: highest sequences.

    closed: it ended; nobody waits for it. fenced: its incarnation is shut out. opened: since the
    shard was started. awaited: the sequence it had come to before. skipped: rows that the last
    changes left out, by sequence, for the answer to one that is repeated.
    """

    client: str
    incarnation: int
    token: int
    rank: int = 0
    world: int = 1
    applied: int = 0
    clock: int = 0
    closed: bool = False
    fenced: bool = False
    durable: int = 0
    opened: bool = False
    awaited: int = 0
    skipped: dict[int, int] = field(default_factory=dict)

    @property
    def job(self) -> str:
        """What the workers of one job have in common: the name without its last part, if it has
        parts.
        """
        return self.client.rpartition("-")[0] or self.client


def describe(session: Session, names: Sequence[str] = SAVED) -> dict[str, Any]:
    """These fields of a session as JSON values."""
    return {name: getattr(session, name) for name in names}


def read_sessions(saved: bytes | None, names: Sequence[str] = SAVED) -> list[dict[str, Any]]:
    """What `describe` described, from a JSON list; none of None. Raises: CorruptError."""
    if saved is None:
        return []
    try:
        entries = json.loads(saved)
        return [{name: entry[name] for name in names} for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"sessions: expected what a cut saved, got something that cannot be read ({error}); "
            f"restore a backup"
        ) from error


def check_name(client: str) -> None:
    """Raises: RefusedError for what is no name of a client."""
    if not _NAME.fullmatch(client):
        raise RefusedError(f"client: expected 1 to 64 of A-Z a-z 0-9 _ . -, got {client[:80]!r}")


def fenced_out(session: Session, incarnation: int) -> FencedError:
    """The error of a process that has no say any more."""
    newer = "" if session.incarnation == incarnation else f" is {session.incarnation}, this one"
    return FencedError(
        f"client {session.client!r}: expected the newest process of it, which{newer} "
        f"{incarnation} is not: another one took its place, or it did not repeat its changes in "
        f"time; start the worker anew"
    )
