"""Directory: the keys of a table's blocks, so that opening a store does not read its rows.

It names the keys of each run of consecutive blocks of one segment. A run that is missing, or
damaged, is made again from its blocks.

Threads: as the log that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from storage.block import Run, is_sound, run_of, unpack_run
from storage.environment import Environment
from storage.errors import CorruptError
from storage.rows import Keys, Positions

# What one transaction reads.
_RUNS = 32


class Directory:
    """See the module's docstring; of ``table``, in a ``database`` of ``environment``.

    blocks: the table's database of blocks.
    """

    def __init__(self, environment: Environment, table: str, blocks: Any) -> None:
        self.database = environment.database(f"keys/{table}")
        self._environment, self._table, self._blocks = environment, table, blocks

    def runs(self, begin: int, end: int, lost: list[int] | None = None) -> Iterator[Run]:
        """Runs of the blocks from ``begin`` to ``end``, the log's end, oldest first.

        lost: takes the blocks that are damaged when their run is damaged, too; without it they
        are a CorruptError.
        """
        while runs := self._some_runs(begin):
            for run in runs:
                yield from self._remade(begin, run[0], lost)
                yield run
                begin = run[0] + len(run[1])
        yield from self._remade(begin, end, lost)

    def numbers(self, begin: int, end: int) -> Positions:
        """The committed blocks from ``begin``, where a segment begins, to below ``end``.

        By their runs, where there are any: to come by blocks with a cursor is to read them.
        """
        found: list[int] = []
        for first, length in [*self._listed(self.database, begin, end), (end, 0)]:
            if length == 0 and first < end:
                continue  # damaged
            found += [number for number, _ in self._listed(self._blocks, begin, first)]
            found += range(first, min(first + length, end))
            begin = first + length
        return np.array(found, np.int64)

    def keys_of(self, number: int) -> Keys:
        """The keys of one block, as the directory has them; none where that is damaged."""
        with self._environment.transaction(self.database) as txn:
            cursor = txn.cursor()
            there = cursor.set_range(number_key(number))
            if not there or block_of(cursor.key()) > number:
                there = cursor.prev() if there else cursor.last()
            run = unpack_run(block_of(cursor.key()), cursor.value()) if there else None
            if run is None or not run[0] <= number < run[0] + len(run[1]):
                return np.empty(0, np.uint64)
            first, counts, keys = run
            edges = np.append(0, np.cumsum(counts, dtype=np.int64))
            return keys[edges[number - first] : edges[number - first + 1]].copy()

    # -- private --------------------------------------------------------------------------------

    def _listed(self, database: Any, begin: int, end: int) -> list[tuple[int, int]]:
        """Numbers of the entries from ``begin`` to below ``end``, and blocks of each, if a run."""
        found: list[tuple[int, int]] = []
        if begin >= end:
            return found
        with self._environment.transaction(database) as txn:
            cursor = txn.cursor()
            there = seek(self._environment.path, cursor, begin)
            while there and (first := block_of(cursor.key())) < end:
                run = unpack_run(first, cursor.value())
                found.append((first, 0 if run is None else len(run[1])))
                there = cursor.next()
        return found

    def _some_runs(self, begin: int) -> list[Run]:
        """The next sound runs that start at ``begin`` or later."""
        found: list[Run] = []
        with self._environment.transaction(self.database) as txn:
            cursor = txn.cursor()
            there = seek(self._environment.path, cursor, begin)
            while there and len(found) < _RUNS:
                run = unpack_run(block_of(cursor.key()), cursor.value())
                found += [] if run is None else [run]
                there = cursor.next()
        return found

    def _remade(self, begin: int, end: int, lost: list[int] | None) -> Iterator[Run]:
        """Runs of one block each, from the blocks ``begin`` up to ``end`` that are there."""
        while begin < end:
            found: list[Run] = []
            with self._environment.transaction(self._blocks) as txn:
                cursor = txn.cursor()
                there = seek(self._environment.path, cursor, begin)
                begin = end
                while there and (number := block_of(cursor.key())) < end:
                    if len(found) == _RUNS:
                        begin = number
                        break
                    block = bytes(cursor.value())
                    there = cursor.next()
                    if is_sound(block, number):
                        found.append(run_of(number, block))
                    elif lost is not None:
                        lost.append(number)
                    else:
                        raise CorruptError(
                            f"{self._environment.path}: table {self._table!r}: expected a sound "
                            f"block {number}, but it is damaged, and its keys in the directory, "
                            f"too; run terrace check --repair, or restore a backup"
                        )
            yield from found


def seek(path: Path, cursor: Any, begin: int) -> bool:
    """Go to block ``begin`` or the first one after it; whether there is one.

    Raises: CorruptError when that is an earlier one.
    """
    there = bool(cursor.set_range(number_key(begin)))
    if there and block_of(cursor.key()) < begin:
        raise CorruptError(
            f"{path}: expected block {begin} or a later one, got an earlier one: LMDB's "
            f"pages are damaged; run terrace check, restore a backup"
        )
    return there


def number_key(block: int) -> bytes:
    """An integer key as LMDB compares it: native order, which is the machine's own."""
    return np.uint64(block).tobytes()


def block_of(key: bytes) -> int:
    """The block number that such a key stands for."""
    return int(np.frombuffer(key, np.uint64)[0])
