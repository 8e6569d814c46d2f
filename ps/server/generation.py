"""Generation: one file of the redo log, how its records lie in it, and how they are read again.

    file:    "terredo1" | generation u64 | mark, 8 bytes | crc32c u32
    record:  mark | generation u64 | number u64 | synced u64 | length u32 | crc32c u32 | payload

Little-endian. A record's checksum covers its header and its payload. ``number`` counts the records
of the file from 0; ``synced`` is how many of them were known to be on the disk when this one was
appended. The mark is random, a new one for each file: nobody who has not read the file can push
bytes that look like one of its records.

What may be torn. Records are acknowledged once they are synced, and the header of a file is synced
before its first record is written. So after a crash any part of the records since the last sync may
be missing, since a disk takes pages in any order: the first of them may be torn and a later one
whole. None of them was acknowledged, and the log ends before the first that is torn. Such an end is
told from damage by what is behind it: if a sound record there says that the bad one was synced, it
was whole once, and this is a CorruptError. Neither can a file that has a newer one be torn, since
it is synced before the newer one is made. What cannot be told from a torn end is damage to the
records of the very last sync of the newest file: nothing was written after it that could say so.

Threads: `append` by one at a time; `sync` beside it, by one at a time.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import numpy as np

from ps.folder import sync
from storage.errors import ConfigError, CorruptError, DiskFullError, StoreError

MOST_BYTES = 32 << 20
"""The longest payload of a record."""
Payload = bytes
Part = bytes | memoryview
_MAGIC = b"terredo1"
_FILE, _RECORD, _CHECKSUM = struct.Struct("<8sQ8s"), struct.Struct("<8sQQQI"), struct.Struct("<I")
_FILE_BYTES, _RECORD_BYTES = _FILE.size + 4, _RECORD.size + 4
# EFBIG: a limit on the size of files (ulimit -f) is as good as a full disk.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Linux takes 1024 pieces a call.
_PIECES, _SEARCHED = 1000, 1 << 20


class Generation:
    """A new file, on the disk with its name when this returns, open for appending.

    ``bytes`` of the file and ``records`` in it; ``synced``: how many of these are on the disk, set
    by whoever called `sync`.

    Raises: DiskFullError, with no file left behind; StoreError.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        self.bytes, self.records, self.synced = _FILE_BYTES, 0, 0
        self._mark = os.urandom(8)
        with translated(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self._write([_sealed(_FILE.pack(_MAGIC, number, self._mark), [])], 0)
            self.sync()
            with translated(path):
                sync(path.parent)
        except BaseException:
            self.close()
            remove(path)
            raise

    def append(self, parts: Sequence[Part]) -> None:
        """Write one record, its payload the parts one after the other; not synced.

        parts: contiguous. Raises: ConfigError above `MOST_BYTES`; DiskFullError, nothing was
        appended; StoreError, the file is good for nothing any more.
        """
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        length = sum(len(view) for view in views)
        if length > MOST_BYTES:
            raise ConfigError(
                f"{self.path}: expected a record of {MOST_BYTES:,} bytes at most, got {length:,}; "
                f"split the push"
            )
        head = _RECORD.pack(self._mark, self.number, self.records, self.synced, length)
        try:
            self._write([memoryview(_sealed(head, views)), *views], self.bytes)
        except BaseException:
            with translated(self.path, full=StoreError):
                os.ftruncate(self._file, self.bytes)
            raise
        self.bytes += _RECORD_BYTES + length
        self.records += 1

    def sync(self) -> None:
        """Return when all that was appended before the call is on the disk.

        Raises: StoreError, whatever the disk says: it says it once, and what was written since the
        last sync may be lost though it can still be read.
        """
        with translated(self.path, full=StoreError):
            os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file, as it is."""
        os.close(self._file)

    def _write(self, pieces: Sequence[Part], place: int) -> None:
        """All pieces, at ``place``: a write at a place needs no seek after a cut back."""
        with translated(self.path):
            for start in range(0, len(pieces), _PIECES):
                some = pieces[start : start + _PIECES]
                size = sum(len(piece) for piece in some)
                written = os.pwritev(self._file, some, place)
                if written != size:
                    raise OSError(errno.ENOSPC, f"{written} of {size} bytes written")
                place += written


def read_records(path: Path, number: int, *, newest: bool) -> Generator[Payload, None, int]:
    """The payloads of a file's records, in order; then how many bytes of the file count.

    newest: whether there is no later file, so that its end may be torn. 0 bytes count of a file
    that a crash left before its header was written.
    Raises: CorruptError that names the file and the place; StoreError.
    """
    with translated(path):
        file = os.open(path, os.O_RDONLY)
        try:
            return (yield from _Reading(path, file, number).records(newest))
        finally:
            os.close(file)


def keep(path: Path, size: int) -> None:
    """Cut a file back to what counts and sync it; one of which nothing counts is removed.

    Raises: StoreError.
    """
    if not size:
        remove(path)
        return
    with translated(path):
        if path.stat().st_size > size:
            os.truncate(path, size)
        sync(path)


def remove(path: Path) -> None:
    """Remove a file, its name on the disk too. Raises: StoreError."""
    with translated(path, full=StoreError):
        path.unlink()
        sync(path.parent)


class _Reading:
    """An open file that is being read. Memory: one record, or a MiB while looking behind damage."""

    def __init__(self, path: Path, file: int, number: int) -> None:
        self._path, self._file, self._number = path, file, number
        self._size = os.fstat(file).st_size
        self._mark = b""

    def records(self, newest: bool) -> Generator[Payload, None, int]:
        if not self._read_header():
            # Records are written after the header was synced: with any, it was whole once.
            if newest and self._size <= _FILE_BYTES:
                return 0
            raise self._damage(0, "a header")
        place, count = _FILE_BYTES, 0
        while place < self._size:
            found = self._record(place)
            if found is None and newest and not self._was_synced(place, count):
                return place
            if found is None or found[0] != count:
                raise self._damage(place, f"record {count}")
            yield found[2]
            place, count = place + _RECORD_BYTES + len(found[2]), count + 1
        return place

    def _read_header(self) -> bool:
        raw = os.pread(self._file, _FILE_BYTES, 0)
        if len(raw) < _FILE_BYTES or raw != _sealed(raw[: _FILE.size], []):
            return False
        magic, number, self._mark = _FILE.unpack_from(raw)
        return (magic, number) == (_MAGIC, self._number)

    def _record(self, place: int) -> tuple[int, int, bytes] | None:
        """Number, synced and payload of the record there; None when there is no sound one."""
        raw = os.pread(self._file, _RECORD_BYTES, place)
        if len(raw) < _RECORD_BYTES:
            return None
        mark, generation, number, synced, length = _RECORD.unpack_from(raw)
        if (mark, generation) != (self._mark, self._number) or length > MOST_BYTES:
            return None
        payload = os.pread(self._file, length, place + _RECORD_BYTES)
        if len(payload) < length or raw != _sealed(raw[: _RECORD.size], [memoryview(payload)]):
            return None
        return number, synced, payload

    def _was_synced(self, place: int, count: int) -> bool:
        """Whether a sound record at or behind ``place`` says that record ``count`` was synced."""
        found = (self._record(at) for at in self._marks(place))
        return any(record is not None and record[1] > count for record in found)

    def _marks(self, begin: int) -> Iterator[int]:
        for place in range(begin, self._size, _SEARCHED):
            # A mark that begins in this stretch may end in the next.
            stretch = os.pread(self._file, _SEARCHED + len(self._mark) - 1, place)
            at = stretch.find(self._mark)
            while at >= 0:
                yield place + at
                at = stretch.find(self._mark, at + 1)

    def _damage(self, place: int, what: str) -> CorruptError:
        return CorruptError(
            f"{self._path}: expected {what} of the redo log at byte {place:,}, found damage in "
            f"what was synced; changes are lost: go back to a checkpoint"
        )


def _sealed(head: bytes, views: Sequence[memoryview]) -> bytes:
    """The head and the checksum of it and what follows."""
    checksum = google_crc32c.value(head)
    for view in views:
        if len(view):
            # As an array, since google_crc32c takes no memoryview; nothing is copied.
            checksum = google_crc32c.extend(checksum, np.frombuffer(view, np.uint8))
    return head + _CHECKSUM.pack(checksum)


@contextmanager
def translated(path: Path, full: type[StoreError] = DiskFullError) -> Iterator[None]:
    """Raise OSError as one of ours: DiskFullError, or what ``full`` says, and StoreError."""
    try:
        yield
    except OSError as error:
        kind = full if error.errno in _FULL else StoreError
        advice = "free space" if kind is DiskFullError else "check the device, restart the shard"
        raise kind(
            f"{path}: expected a disk that takes the redo log, got {error.strerror or error}; "
            f"{advice}"
        ) from error
