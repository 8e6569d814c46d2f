"""Journal: what the recorder wrote down, and the disk that a power cut would have left.

The disk keeps what was synced. Of what was written since the last sync of a file any part may be
there: any of the writes, and of each any of its sectors of 512 bytes. Names (files that are new,
renamed or removed) reach the disk in their order, at the latest when the folder is synced; a file's
own first name with the file's first sync, as journaling file systems have it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SECTOR = 512
OPENED, WRITTEN, RESIZED, SYNCED, RENAMED, REMOVED, MARKED = range(1, 8)
IS_FOLDER, IS_NEW, IS_SYNC = 1, 2, 4
_HEADER = struct.Struct("=IIQQQd")


@dataclass(frozen=True)
class Record:
    """One call. offset: of a write, or the new size. data: what was written, or names, or words.

    seconds: of CLOCK_MONOTONIC, when it was over.
    """

    kind: int
    flags: int
    file: int
    offset: int
    data: bytes
    seconds: float


def read_journal(path: Path) -> list[Record]:
    """All records, in the order of what happened."""
    raw, at, records = path.read_bytes(), 0, []
    while at < len(raw):
        kind, flags, file, offset, length, seconds = _HEADER.unpack_from(raw, at)
        at += _HEADER.size + length
        records.append(Record(kind, flags, file, offset, raw[at - length : at], seconds))
    return records


@dataclass
class File:
    """What is on the disk of one file, and the calls since its last sync, which may not be."""

    content: bytearray = field(default_factory=bytearray)
    since: list[Record] = field(default_factory=list)


class Disk:
    """The files of one folder while records are played one by one."""

    def __init__(self) -> None:
        self._files: dict[int, File] = {}
        self._names: dict[str, int] = {}
        self._names_since: list[Record] = []

    def play(self, record: Record) -> None:
        """This call has returned."""
        if record.kind in (WRITTEN, RESIZED):
            self._files[record.file].since.append(record)
        elif record.kind in (RENAMED, REMOVED):
            self._names_since.append(record)
        elif record.kind == OPENED and not record.flags & IS_FOLDER:
            self._files.setdefault(record.file, File())
            if record.flags & IS_NEW:
                self._files[record.file] = File()
                self._names_since.append(record)
        elif record.kind == SYNCED and record.flags & IS_FOLDER:
            self._settle_names(self._names_since)
            self._names_since = []
        elif record.kind == SYNCED:
            self._sync(record.file)

    def after_cut(
        self, under_way: Record | None, rng: np.random.Generator | None
    ) -> dict[str, bytes]:
        """The files as a power cut leaves them while the call ``under_way`` goes on.

        rng: chooses what of the unsynced is there; None is nothing of it. Uses up this disk's
        names, not its contents: play the records again for another cut.
        """
        names, pending = dict(self._names), list(self._names_since)
        if under_way is not None and _is_of_names(under_way):
            pending.append(under_way)
        for record in pending[: round(_share(rng) * len(pending))]:
            _rename(names, record)
        return {
            name: bytes(self._torn(self._files.get(file, File()), file, under_way, rng))
            for name, file in names.items()
        }

    def everything(self) -> dict[str, bytes]:
        """The files as they are without a cut."""
        names = dict(self._names)
        for record in self._names_since:
            _rename(names, record)
        found = {}
        for name, number in names.items():
            content = bytearray(self._files[number].content)
            for record in self._files[number].since:
                _apply(content, record)
            found[name] = bytes(content)
        return found

    # -- private --------------------------------------------------------------------------------

    def _sync(self, number: int) -> None:
        file = self._files[number]
        for record in file.since:
            _apply(file.content, record)
        file.since = []
        for record in self._names_since:
            if record.kind == OPENED and record.file == number:
                self._settle_names([record])
                self._names_since.remove(record)
                return

    def _settle_names(self, records: list[Record]) -> None:
        for record in records:
            _rename(self._names, record)

    def _torn(
        self, file: File, number: int, under_way: Record | None, rng: np.random.Generator | None
    ) -> bytearray:
        content, since = bytearray(file.content), list(file.since)
        if under_way is not None and under_way.file == number and not _is_of_names(under_way):
            since.append(under_way)
        share = _share(rng)
        for record in since:
            if record.kind == WRITTEN and record.flags & IS_SYNC and record is not under_way:
                _apply(content, record)  # it was synced before it returned
            elif rng is not None and record.kind == RESIZED and rng.random() < share:
                _apply(content, record)
            elif rng is not None and record.kind == WRITTEN:
                for offset, sector in _sectors(record):
                    if rng.random() < share:
                        _write(content, offset, sector)
        return content


def _share(rng: np.random.Generator | None) -> float:
    """How much of something is there: often nothing, or all."""
    return 0.0 if rng is None else float(rng.choice([0.0, 1.0, rng.random()]))


def _is_of_names(record: Record) -> bool:
    return record.kind in (RENAMED, REMOVED) or bool(
        record.kind == OPENED and record.flags & IS_NEW
    )


def _rename(names: dict[str, int], record: Record) -> None:
    name, _, target = record.data.decode().partition("\n")
    if record.kind == OPENED:
        names[name] = record.file
    elif (file := names.pop(name, None)) is not None and record.kind == RENAMED:
        names[target] = file


def _sectors(record: Record) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of the pieces that reach the disk whole or not at all."""
    begin, end = record.offset, record.offset + len(record.data)
    while begin < end:
        edge = min(end, (begin // SECTOR + 1) * SECTOR)
        yield begin, record.data[begin - record.offset : edge - record.offset]
        begin = edge


def _apply(content: bytearray, record: Record) -> None:
    if record.kind == WRITTEN:
        _write(content, record.offset, record.data)
    else:
        del content[record.offset :]
        content.extend(bytes(record.offset - len(content)))


def _write(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data
