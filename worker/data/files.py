"""Files as a dataset: which to train on, which to test with, where the held-out rows lie."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage.errors import DataError
from worker.data.batch import Batch
from worker.data.dataset import Dataset

# What lies beside data in folders as published, and what writers of Parquet folders leave there.
_BESIDE = re.compile(r"[._]|readme|licen[cs]e|sha256sums|.*\.(md|json|ya?ml)$", re.IGNORECASE)
_TRAIN = re.compile(r"train", re.IGNORECASE)
_TEST = re.compile(r"test|.*\.test\b", re.IGNORECASE)
_DEV = re.compile(r"dev", re.IGNORECASE)


class Reader(Protocol):
    """Reads files of one format; rows of a file count from 0."""

    dense_names: tuple[str, ...]
    feature_names: tuple[str, ...]

    @property
    def bad_lines(self) -> int:
        """Different bad lines passed over so far in all files."""

    def count(self, path: Path) -> int:
        """The rows of a file."""

    def read(
        self, path: Path, first: int = 0, stop: int | None = None
    ) -> Generator[Batch, None, int]:
        """Rows ``first`` to ``stop - 1`` in blocks; returns the last row looked at + 1."""


@dataclass(frozen=True)
class Parts:
    """The files to train on and those to test with, each in reading order.

    Without test files the last rows of the training files are held out.
    """

    train: tuple[Path, ...]
    test: tuple[Path, ...] = ()


def list_files(path: Path) -> tuple[Path, ...]:
    """The file itself, or a folder's data files in sorted name order.

    Raises DataError for a path that is missing and for a folder without data files.
    """
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise DataError(f"{path}: expected a file or folder, got nothing; correct the path")
    files = sorted(
        (file for file in path.iterdir() if file.is_file() and not _BESIDE.match(file.name)),
        key=lambda file: file.name,
    )
    if not files:
        raise DataError(f"{path}: expected a folder with data files, got none")
    return tuple(files)


def split(files: tuple[Path, ...]) -> Parts:
    """The parts that file names tell: train*, test*, and dev* where there is no test*.

    Names that tell nothing are training files when no name says train. A single file, and files
    that would leave nothing to train on, are all training files.
    """
    test = tuple(file for file in files if _TEST.match(file.name))
    dev = tuple(file for file in files if _DEV.match(file.name))
    named = tuple(file for file in files if _TRAIN.match(file.name))
    train = named or tuple(file for file in files if file not in test + dev)
    return Parts(train, test or dev) if train else Parts(files)


class FileDataset(Dataset):
    """Examples from files of one format."""

    def __init__(self, name: str, reader: Reader, parts: Parts, *, holdout: float) -> None:
        self.name = name
        self.dense_names = reader.dense_names
        self.feature_names = reader.feature_names
        self._reader = reader
        self._parts = parts
        self._holdout = 0.0 if parts.test else holdout
        self._counts: dict[Path, int] = {}

    @property
    def bad_lines(self) -> int:
        """Different bad lines passed over so far, in the files of both parts."""
        return self._reader.bad_lines

    @property
    def train_examples(self) -> int | None:
        """Examples of one epoch. With a held-out share, the first call reads all files to count;
        without one, None until a pass has come to the end."""
        if self._holdout:
            total = self._total()
            return total - int(total * self._holdout)
        if all(path in self._counts for path in self._parts.train):
            return self._total()
        return None

    def _total(self) -> int:
        for path in self._parts.train:
            if path not in self._counts:
                self._counts[path] = self._reader.count(path)
        return sum(self._counts[path] for path in self._parts.train)

    def _read_train(self, first: int) -> Iterator[Batch]:
        yield from self._read(self._parts.train, first, self.train_examples)

    def _read_test(self) -> Iterator[Batch]:
        if self._parts.test:
            yield from self._read(self._parts.test, 0, None)
        elif self._holdout:
            yield from self._read(self._parts.train, self.train_examples or 0, None)

    def _read(self, files: tuple[Path, ...], first: int, stop: int | None) -> Iterator[Batch]:
        """Rows ``first`` to ``stop - 1`` of the files one after the other."""
        row = 0
        for path in files:
            known = self._counts.get(path)
            if known is not None and row + known <= first:
                row += known
                continue
            if stop is not None and row >= stop:
                return
            last = None if stop is None else stop - row
            seen = yield from self._reader.read(path, max(first - row, 0), last)
            if last is None:
                self._counts[path] = seen
            row += seen
