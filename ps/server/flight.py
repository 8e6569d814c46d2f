"""Flight: bytes of requests and answers that a server holds at once, bounded.

An answer is held until its reader has taken it, so a slow reader would make a server's memory grow;
what would go beyond the bound is refused at once instead. No peer has more than three quarters of
it, so that one that does not read keeps nobody else out.

Threads: any.
"""

from __future__ import annotations

import threading
from collections import Counter

from storage.errors import OverloadedError


class Flight:
    """At most ``most_bytes`` at once, of one peer three quarters; a piece that is larger may come
    alone.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._held = 0
        self._of_peer: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._held

    def take(self, size: int, peer: str = "") -> None:
        """Hold so many bytes more until `give`. Raises: OverloadedError."""
        with self._lock:
            mine = self._of_peer[peer]
            self._ensure_room("all clients", self._held, size, self.most_bytes)
            self._ensure_room("this client", mine, size, self.most_bytes * 3 // 4)
            self._held += size
            self._of_peer[peer] = mine + size

    def give(self, size: int, peer: str = "") -> None:
        """These bytes are gone."""
        with self._lock:
            self._held -= size
            self._of_peer[peer] -= size
            if not self._of_peer[peer]:
                del self._of_peer[peer]

    def _ensure_room(self, whose: str, held: int, size: int, most: int) -> None:
        if held and held + size > most:
            raise OverloadedError(
                f"{held} bytes of messages are held for {whose}, expected {most} at most with "
                f"{size} more; try again shortly",
                retry_seconds=0.05,
            )
