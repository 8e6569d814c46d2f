"""Tombstones: the deleted keys of one table, in the file of its log.

A tombstone names keys and the number of the next block when they were deleted: it hides every
version of them in a lower block, whichever checkpoint one goes back to, and none in a later one. It
goes when no block is left that it could hide anything in, but for the newest: it may be all that is
left of a log, and keeps the numbers below it, which a checkpoint names, from being used anew.

Threads: one owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from storage.block import pack_tombstone, unpack_tombstone
from storage.environment import PAGE, Environment
from storage.errors import CorruptError
from storage.rows import Keys

# Tombstones that one transaction reads or writes, and keys of each.
_AT_ONCE = 64
_KEYS = 1 << 10


class Tombstones:
    """See the module's docstring; in a database of ``environment``."""

    def __init__(self, environment: Environment, table: str) -> None:
        self._environment = environment
        self._table = table
        self._database = environment.database(f"tombstones/{table}")

    @property
    def end(self) -> int:
        """The highest block number that one was made with: lower ones must not be used anew."""
        with self._environment.transaction(self._database) as txn:
            cursor = txn.cursor()
            last = _read(cursor) if cursor.last() else None
        return last[0] if last else 0

    def bury(self, end: int, keys: Keys) -> None:
        """Hide the versions of ``keys`` in the blocks below ``end``; durable on return.

        Raises: DiskFullError before anything has changed when they would not fit.
        """
        self._environment.ensure_room(2 * keys.nbytes + PAGE)
        pieces = range(0, len(keys), _KEYS)
        for some in range(0, len(pieces), _AT_ONCE):
            with self._environment.transaction(self._database, write=True) as txn:
                cursor = txn.cursor()
                sequence = _sequence(cursor) + 1 if cursor.last() else 0
                for start in pieces[some : some + _AT_ONCE]:
                    value = pack_tombstone(sequence, end, keys[start : start + _KEYS])
                    cursor.put(_key(sequence), value, append=True)
                    sequence += 1

    def __iter__(self) -> Iterator[tuple[int, Keys]]:
        """(end, keys) of all, oldest first. Raises: CorruptError when one is damaged."""
        for tombstone in self.each():
            if tombstone is None:
                raise self._damage()
            yield tombstone

    def each(self) -> Iterator[tuple[int, Keys] | None]:
        """(end, keys) of all, oldest first; None for one that is damaged."""
        for sequence, value in self._scan(0):
            yield unpack_tombstone(sequence, value)

    def exhume(self, lowest: int) -> None:
        """Remove those that hide nothing any more (no block is lower than ``lowest``), but for the
        newest."""
        while self._hides_nothing(lowest):
            self._environment.freely(
                lambda txn: self._remove(txn, lambda cursor: _is_done(cursor, lowest))
            )

    # -- as they lie in the file, for a copy of the log --------------------------------------------

    def records(self, begin: int = 0) -> Iterator[tuple[int, bytes]]:
        """Sequence number and bytes (a copy) of all from number ``begin`` on, oldest first.

        The numbers only grow, and none is used twice. Raises: CorruptError.
        """
        for sequence, value in self._scan(begin):
            if unpack_tombstone(sequence, value) is None:
                raise self._damage()
            yield sequence, value

    @property
    def span(self) -> tuple[int, int]:
        """Number of the oldest, and one more than that of the newest; (0, 0) without any."""
        with self._environment.transaction(self._database) as txn:
            cursor = txn.cursor()
            first = _sequence(cursor) if cursor.first() else 0
            return first, _sequence(cursor) + 1 if cursor.last() else 0

    def put(self, txn: Any, sequence: int, value: bytes) -> None:
        """Add one of another log's `records`, newer than all here, in the transaction of a cut."""
        txn.put(_key(sequence), value, db=self._database, append=True)

    def forget(self, begin: int) -> None:
        """Remove those with lower numbers than ``begin``, in bounded transactions."""
        while self.span[0] < begin:
            self._environment.freely(
                lambda txn: self._remove(txn, lambda cursor: _sequence(cursor) < begin)
            )

    # -- private --------------------------------------------------------------------------------

    def _scan(self, begin: int) -> Iterator[tuple[int, bytes]]:
        """Sequence number and bytes of all from ``begin`` on; no bytes where LMDB is damaged."""
        there = True
        while there:
            found: list[tuple[int, bytes]] = []
            with self._environment.transaction(self._database) as txn:
                cursor = txn.cursor()
                there = cursor.set_range(_key(begin))
                while there and len(found) < _AT_ONCE:
                    sequence = _sequence(cursor)
                    found.append((sequence, bytes(cursor.value()) if sequence >= begin else b""))
                    begin = sequence + 1
                    there = cursor.next()
            yield from found

    def _damage(self) -> CorruptError:
        return CorruptError(
            f"{self._environment.path}: table {self._table!r}: expected a sound list of deleted "
            f"keys, but it is damaged; run terrace check --repair, or restore a backup"
        )

    def _hides_nothing(self, lowest: int) -> bool:
        """Whether the oldest one may go."""
        with self._environment.transaction(self._database) as txn:
            cursor = txn.cursor()
            return bool(cursor.first()) and _is_done(cursor, lowest)

    def _remove(self, txn: Any, may_go: Callable[[Any], bool]) -> None:
        """Remove up to 64, from the oldest on."""
        cursor = txn.cursor(self._database)
        for _ in range(_AT_ONCE):
            if not cursor.first() or not may_go(cursor):
                return
            cursor.delete()


def _key(sequence: int) -> bytes:
    return np.uint64(sequence).tobytes()


def _sequence(cursor: Any) -> int:
    return int(np.frombuffer(cursor.key(), np.uint64)[0])


def _is_done(cursor: Any, lowest: int) -> bool:
    """Whether this, the oldest one, hides nothing below ``lowest``, and is not the newest."""
    oldest = _read(cursor)
    if oldest is None or oldest[0] > lowest or not cursor.next():
        return False
    return bool(cursor.prev())


def _read(cursor: Any) -> tuple[int, Keys] | None:
    return unpack_tombstone(_sequence(cursor), cursor.value())
