"""WriteBuffer: rows of one table on their way into blocks and to the log.

Rows that arrive together lie together: they fill the blocks of a buffer, which goes to the log when
it is full. A row's address is final when it enters, so it is found at every moment: in the open
buffer, in one on its way to the disk, or on the disk.

Threads: one owner; buffers on their way are the log's, to be read only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storage.address import ADDRESSES
from storage.block import Blocks, BlockShape
from storage.errors import StoreError
from storage.log import BlockLog
from storage.places import Places
from storage.rows import Keys, Positions

# One buffer being filled, two on their way; another copy is pages of an open transaction.
_BUFFERS = 3
COPIES = 4
"""Copies of a buffer that are held at most."""


class WriteBuffer:
    """See the module's docstring. blocks: of each buffer. places: takes the pages of those that
    reach the disk. ``first``: of the open one.

    ``bytes_sent`` counts what the log was given.
    """

    def __init__(
        self, table: str, shape: BlockShape, log: BlockLog, places: Places, *, blocks: int
    ) -> None:
        self._places = places
        self._table = table
        self._shape = shape
        self._log = log
        self._blocks = blocks
        self._spare = [np.zeros(blocks, shape.dtype) for _ in range(_BUFFERS)]
        self._open = self._spare.pop()
        self._on_the_way: list[tuple[int, Blocks, Blocks]] = []
        self._filled = 0
        self.first = log.committed[table]
        self.bytes_sent = 0

    @property
    def arrays(self) -> list[Blocks]:
        """All buffers that are held: views."""
        return [self._open, *self._spare, *(buffer for _, _, buffer in self._on_the_way)]

    @property
    def end(self) -> int:
        """One more than the highest block number in use."""
        return self.first + -(-self._filled // self._shape.rows)

    @property
    def room(self) -> int:
        """Rows that the open buffer still takes."""
        return self._blocks * self._shape.rows - self._filled

    def fill(self, keys: Keys, steps: NDArray[np.uint32], records: NDArray[np.uint8]) -> Positions:
        """Copy at most `room` rows in: (U,) int64 addresses. Raises: StoreError."""
        places = np.arange(self._filled, self._filled + len(keys))
        block, place = np.divmod(places, self._shape.rows)
        addresses = ((self.first + block) << self._shape.place_bits) | place
        if addresses[-1] >= ADDRESSES:
            raise StoreError(
                f"table {self._table!r}: expected a block number below "
                f"{ADDRESSES >> self._shape.place_bits}, but all are used up; export the table and "
                f"import it into a new store"
            )
        self._open["keys"][block, place] = keys
        self._open["steps"][block, place] = steps
        self._open["records"][block, place] = records
        self._open["count"][block] = place + 1
        self._filled += len(keys)
        return addresses

    def end_block(self) -> None:
        """Leave the rest of a partly filled block empty."""
        self._filled += -self._filled % self._shape.rows

    def send(self) -> Positions:
        """Hand the blocks of the open buffer to the log: (n,) int64, their numbers.

        Raises: DiskFullError; nothing has changed then.
        """
        first, count = self.first, self._filled // self._shape.rows
        if count == 0:
            return np.empty(0, np.int64)
        self.collect()
        if not self._spare:
            oldest, blocks, _ = self._on_the_way[0]
            self._log.wait(self._table, oldest + len(blocks))
            self.collect()
        # Nothing has changed until the log has taken the blocks: it may refuse them.
        self._log.append(self._table, first, self._open[:count])
        self._on_the_way.append((first, self._open[:count], self._open))
        self._open = self._spare.pop()
        self.first, self._filled = first + count, 0
        self.bytes_sent += count * self._shape.pages * 4096
        return np.arange(first, first + count)

    def collect(self) -> None:
        """Take back the buffers that have reached the disk."""
        committed = self._log.committed[self._table]
        while self._on_the_way and self._on_the_way[0][0] < committed:
            first, blocks, buffer = self._on_the_way.pop(0)
            self._log.locate(self._table, first, first + len(blocks), self._places)
            blocks[:] = np.zeros(1, self._shape.dtype)
            self._spare.append(buffer)

    def restart(self, places: Places) -> None:
        """Forget the open buffer and go on after what is on the disk; nothing may be on its way."""
        self._places = places
        assert not self._on_the_way, "started anew while blocks were on their way"
        self._filled = 0
        self._open[:] = np.zeros(1, self._shape.dtype)
        self.first = self._log.committed[self._table]

    def read(self, numbers: Positions, out: Blocks) -> list[int]:
        """Copy blocks, ascending, from disk or buffers: the indices of damaged ones."""
        waiting = [(first, blocks) for first, blocks, _ in self._on_the_way]
        waiting.append((self.first, self._open))
        on_disk = int(np.searchsorted(numbers, waiting[0][0]))
        damaged = self._read_log(numbers[:on_disk], out[:on_disk]) if on_disk else []
        for first, blocks in waiting:
            begin, end = np.searchsorted(numbers, (first, first + len(blocks)))
            out[begin:end] = blocks[numbers[begin:end] - first]
        return damaged

    def _read_log(self, numbers: Positions, out: Blocks) -> list[int]:
        pages = self._places.of(numbers)
        damaged = self._log.read(self._table, numbers, out, pages)
        self._places.note(numbers, pages)
        return damaged
