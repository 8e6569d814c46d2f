"""Flight: bytes of requests and answers that a server holds at once, bounded.

An answer is held until its reader has taken it, so a slow reader would make a server's memory grow;
what would go beyond the bound is refused at once instead.

Threads: any.
"""

from __future__ import annotations

import threading

from storage.errors import OverloadedError


class Flight:
    """At most ``most_bytes`` at once; one piece that is larger may come alone."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._held

    def take(self, size: int) -> None:
        """Hold so many bytes more until `give`. Raises: OverloadedError."""
        with self._lock:
            if self._held and self._held + size > self.most_bytes:
                raise OverloadedError(
                    f"{self._held} bytes of messages are held, expected {self.most_bytes} at most "
                    f"with {size} more; try again shortly",
                    retry_seconds=0.05,
                )
            self._held += size

    def give(self, size: int) -> None:
        """These bytes are gone."""
        with self._lock:
            self._held -= size
