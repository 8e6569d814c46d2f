"""Frames: where the frames of a call begin in one direction of an HTTP/2 connection.

A proxy that cuts "at the reply" must tell replies from what the protocol says on its own account
(settings, window updates, pings), which comes at any time. What is no HTTP/2 gives nonsense here,
and no error.
"""

from __future__ import annotations

_HEADER_BYTES = 9
_DATA, _HEADERS, _CONTINUATION = 0x0, 0x1, 0x9
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Frames:
    """One direction of one connection, from its first byte on. from_client: which one."""

    def __init__(self, *, from_client: bool) -> None:
        self._left = len(_PREFACE) if from_client else 0  # of the frame that has begun
        self._is_call = False
        self._header = b""

    def feed(self, data: bytes) -> list[tuple[int, bool]]:
        """The bytes that came next, as stretches: each one's length, and whether it is a call's.

        A frame's header counts with its last byte, so a cut before a call's stretch leaves at most
        eight bytes of its header passed.
        """
        stretches: list[tuple[int, bool]] = []
        position = 0
        while position < len(data):
            if self._left:
                size = min(self._left, len(data) - position)
                self._left -= size
                stretches.append((size, self._is_call))
                position += size
                continue
            size = min(_HEADER_BYTES - len(self._header), len(data) - position)
            self._header += data[position : position + size]
            position += size
            is_whole = len(self._header) == _HEADER_BYTES
            if is_whole:
                self._left = int.from_bytes(self._header[:3], "big")
                self._is_call = self._header[3] in (_DATA, _HEADERS, _CONTINUATION)
                self._header = b""
            stretches.append((size, is_whole and self._is_call))
        return stretches
