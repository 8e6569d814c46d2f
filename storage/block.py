"""Blocks: the unit that is written to and read from the SSD, a few thousand bytes of rows.

A block is one LMDB value of ``pages * 4096 - 16`` bytes, which is exactly that many of LMDB's
overflow pages (one byte more would cost another page). It is written once and never changed::

    crc32c u32 | rows u16 | zero u8 | version u8 | block number u64 | keys | steps | records | zeros

The checksum covers everything after itself; the number inside tells a block that was put in
another's place. Numbers are little-endian.

Blocks whose numbers agree but for their last 6 bits are a *segment*, the unit of compaction. A
*run* is what the log's directory says of consecutive blocks of one segment: their keys.

Threads: no state but the blocks themselves, which belong to one thread at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from storage.checksum import checksums
from storage.codec import Codec
from storage.rows import Keys

VERSION = 2
"""Format of blocks, in each of them."""
SEGMENT_BITS = 6
SEGMENT_BLOCKS = 1 << SEGMENT_BITS
_PAGE, _PAGE_HEADER = 4096, 16
_HEADER = 16
_MOST_PAGES = 16
_WASTE = 1.25
_OVERHEAD = 1.15

Blocks = NDArray[Any]
"""(n,) records of `BlockShape.dtype`."""
Run = tuple[int, NDArray[np.uint16], Keys]
"""Consecutive blocks without their rows: the first's number, how many rows each has, all keys."""


@dataclass(frozen=True)
class BlockShape:
    """How rows of one table lie in blocks."""

    dim: int
    state_width: int
    codec: Codec

    @property
    def record_bytes(self) -> int:
        """Bytes of one row without its key and step."""
        return self.codec.record_bytes(self.dim, self.state_width)

    @property
    def stored_bytes(self) -> int:
        """Bytes of one row with its key and step."""
        return self.record_bytes + 12

    @cached_property
    def pages(self) -> int:
        """Pages of a block: the fewest that waste at most a fifth, since a read costs them all."""
        least = -(-(self.stored_bytes + _HEADER + _PAGE_HEADER) // _PAGE)
        for pages in range(least, least + _MOST_PAGES):
            if pages * _PAGE <= _WASTE * self.stored_bytes * self._rows_in(pages):
                return pages
        return least

    @cached_property
    def rows(self) -> int:
        """Rows of a full block, 1 to 255."""
        return self._rows_in(self.pages)

    @property
    def bytes(self) -> int:
        """Bytes of a block."""
        return self.pages * _PAGE - _PAGE_HEADER

    def disk_bytes(self, rows: int) -> int:
        """Bytes that writing so many rows takes on the disk at most, a partly filled block and the
        directory included."""
        blocks = -(-rows // self.rows) + 1
        return int(_OVERHEAD * blocks * (self.pages * _PAGE + 8 * self.rows))

    @property
    def place_bits(self) -> int:
        """Bits that tell the rows of a block apart."""
        return max(1, (self.rows - 1).bit_length())

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """A block as a NumPy record: crc, count, zero, version, number, keys, steps, records."""
        fields = [
            ("crc", "<u4", ()), ("count", "<u2", ()), ("zero", "u1", ()), ("version", "u1", ()),
            ("number", "<u8", ()), ("keys", "<u8", (self.rows,)), ("steps", "<u4", (self.rows,)),
            ("records", "u1", (self.rows, self.record_bytes)),
        ]  # fmt: skip
        kinds = [np.dtype((kind, shape)) for _, kind, shape in fields]
        starts = np.cumsum([0, *(kind.itemsize for kind in kinds[:-1])]).tolist()
        names = [name for name, _, _ in fields]
        return np.dtype(
            {"names": names, "formats": kinds, "offsets": starts, "itemsize": self.bytes}
        )

    def _rows_in(self, pages: int) -> int:
        return min(255, (pages * _PAGE - _PAGE_HEADER - _HEADER) // self.stored_bytes)


def checksum(value: bytes) -> bytes:
    """crc32c of ``value``: 4 bytes, little-endian."""
    return int(google_crc32c.value(value)).to_bytes(4, "little")


def is_sound(block: bytes, number: int) -> bool:
    """Whether these bytes are block ``number`` as it was sealed."""
    return (
        len(block) > _HEADER
        and block[:4] == checksum(block[4:])
        and int.from_bytes(block[8:16], "little") == number
    )


def seal(blocks: Blocks, first: int) -> list[memoryview]:
    """A view of each block's bytes, once it has its number, from ``first`` on, and its checksum.

    blocks: (n,) contiguous, changed in place; they must not change while the views are in use.
    """
    blocks["version"] = VERSION
    blocks["number"] = np.arange(first, first + len(blocks), dtype=np.uint64)
    raw = blocks.view(np.uint8).reshape(len(blocks), blocks.dtype.itemsize)
    blocks["crc"] = checksums(raw)
    whole = raw.reshape(-1).data
    # A Python loop over blocks, in the writer thread: 0.1 us each.
    return [whole[start : start + raw.shape[1]] for start in range(0, len(whole), raw.shape[1])]


def run_blocks(rows: int) -> int:
    """The most blocks of this many rows whose run is one page."""
    return max(1, min(SEGMENT_BLOCKS, (_PAGE - _PAGE_HEADER - 8) // (2 + 8 * rows)))


def run_of(number: int, block: bytes) -> Run:
    """The run of one sound block: views of its bytes."""
    count = np.frombuffer(block, "<u2", 1, 4)
    return number, count, np.frombuffer(block, "<u8", int(count[0]), _HEADER)


def pack_run(first: int, blocks: Blocks) -> bytes:
    """``crc32c u32 | blocks u32 | rows u16 of each | keys``; the checksum covers ``first``, too."""
    held = np.arange(blocks["keys"].shape[1]) < blocks["count"][:, None]
    parts = (np.uint32(len(blocks)), blocks["count"], blocks["keys"][held])
    value = b"".join(part.tobytes() for part in parts)
    return checksum(first.to_bytes(8, "little") + value) + value


def unpack_run(first: int, value: bytes) -> Run | None:
    """Views of what `pack_run` wrote; None when it is damaged or another run's."""
    if len(value) < 8 or value[:4] != checksum(first.to_bytes(8, "little") + value[4:]):
        return None
    count = int.from_bytes(value[4:8], "little")
    rows = np.frombuffer(value, "<u2", count, 8)
    return first, rows, np.frombuffer(value, "<u8", int(rows.sum()), 8 + 2 * count)


def pack_tombstone(sequence: int, end: int, keys: Keys) -> bytes:
    """``crc32c u32 | 4 zeros | end u64 | keys``: keys deleted when ``end`` was the next block."""
    value = bytes(4) + end.to_bytes(8, "little") + keys.tobytes()
    return checksum(sequence.to_bytes(8, "little") + value) + value


def unpack_tombstone(sequence: int, value: bytes) -> tuple[int, Keys] | None:
    """End and keys (a view) of what `pack_tombstone` wrote; None when it is damaged."""
    if len(value) < 16 or value[:4] != checksum(sequence.to_bytes(8, "little") + value[4:]):
        return None
    return int.from_bytes(value[8:16], "little"), np.frombuffer(value, "<u8", offset=16)
