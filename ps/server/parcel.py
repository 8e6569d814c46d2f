"""Parcel: the tensors of a checkpoint's state, which come in pieces and are asked for once.

A piece that comes again is the same and changes nothing, however late it is; where another comes in
its place, the client has begun anew, and it and what was behind it counts.

Threads: any; one lock guards it. Memory: what has come of one state; another client's takes its
place when it begins.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable

from storage.errors import RefusedError

MOST_BYTES = 1 << 32


class Parcel:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: Hashable = None
        self._data = bytearray()

    def is_of(self, key: Hashable) -> bool:
        """Whether pieces of this have come."""
        with self._lock:
            return key == self._key

    def take(self, key: Hashable, offset: int, size: int, piece: bytes) -> None:
        """A piece of ``size`` bytes in all. key: whose it is. Raises: RefusedError out of order."""
        if size > MOST_BYTES:
            raise RefusedError(f"state: expected {MOST_BYTES} bytes at most, got {size}")
        if offset + len(piece) > size:
            raise RefusedError(
                f"state: expected pieces within {size} bytes, got {len(piece)} at {offset}"
            )
        with self._lock:
            if offset == 0 and key != self._key:
                self._key, self._data = key, bytearray()
            have = len(self._data) if key == self._key else 0
            if offset > have:
                raise RefusedError(f"state: expected the piece at {have}, got {offset} of {size}")
            if self._data[offset : offset + len(piece)] != piece:
                del self._data[offset:]
                self._data += piece

    def whole(self, key: Hashable, size: int) -> bytes:
        """All of it, a copy. Raises: RefusedError when some is lacking."""
        with self._lock:
            have = len(self._data) if key == self._key else 0
            if have < size:
                raise RefusedError(f"state: expected {size} bytes in pieces, got {have}")
            return bytes(memoryview(self._data)[:size])

    def clear(self) -> None:
        """It is stored: let go of it."""
        with self._lock:
            self._key, self._data = None, bytearray()
