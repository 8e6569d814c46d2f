"""Holder: ours and what a user would take instead, to keep rows by key on a disk.

Each appends rows that come in any order of keys, a batch at a time, durable when `append` or `sync`
returns, and reads rows at random. ``file`` is what holds the rows.

Threads: one owner each.
"""

from __future__ import annotations

import importlib
import importlib.util
import mmap
from pathlib import Path
from typing import Any, Protocol

import lmdb
import numpy as np

from storage.block import BlockShape
from storage.codec import codec
from storage.log import BlockLog
from storage.rows import Floats, Keys, Rows
from storage.ssd import SsdTier

TABLE = "bench"
BUFFER_BYTES = 4 << 20
"""Of a synced transaction of each."""


class Holder(Protocol):
    """See the module's docstring."""

    name: str
    file: Path

    def append(self, keys: Keys, values: Floats) -> None:
        """Take rows: (N,) keys and (N, dim) values."""

    def sync(self) -> None:
        """Return when all are durable."""

    def read(self, keys: Keys) -> Floats:
        """(N, dim) copies of the rows of these keys, which are there."""

    def close(self) -> None:
        """Let go of the file."""


class Terrace:
    """The SSD tier of a table."""

    name = "terrace"

    def __init__(self, folder: Path, dim: int) -> None:
        self.file = folder / "data.mdb"
        self.log = BlockLog(folder, [TABLE])
        shape = BlockShape(dim, 0, codec("float32"))
        self.tier = SsdTier(TABLE, shape, self.log, buffer_bytes=BUFFER_BYTES)
        self._dim = dim

    def append(self, keys: Keys, values: Floats) -> None:
        """See `Holder`."""
        rows = Rows.empty(len(keys), self._dim)
        rows.keys[:], rows.values[:], rows.steps[:], rows.dirty[:] = keys, values, 1, True
        self.tier.write(rows)

    def sync(self) -> None:
        """See `Holder`."""
        self.tier.flush()
        self.log.commit({"cut": b"bench"})

    def read(self, keys: Keys) -> Floats:
        """See `Holder`."""
        return self.tier.peek(keys)[0].values

    def close(self) -> None:
        """See `Holder`."""
        self.log.close()


class LmdbRows:
    """LMDB with one entry a row."""

    name = "lmdb, a row an entry"

    def __init__(self, folder: Path, dim: int) -> None:
        self.file = folder / "data.mdb"
        self._env = lmdb.open(str(folder), map_size=1 << 42, readahead=False)

    def append(self, keys: Keys, values: Floats) -> None:
        """See `Holder`."""
        pairs = [(key.tobytes(), row.tobytes()) for key, row in zip(keys, values, strict=True)]
        with self._env.begin(write=True) as txn:
            txn.cursor().putmulti(pairs)

    def sync(self) -> None:
        """Each transaction is durable."""

    def read(self, keys: Keys) -> Floats:
        """See `Holder`."""
        with self._env.begin() as txn:
            found = b"".join(txn.get(key.tobytes()) or b"" for key in keys)
        return np.frombuffer(found, np.float32).reshape(len(keys), -1)

    def close(self) -> None:
        """See `Holder`."""
        self._env.close()


class Mapped:
    """An array in a memory-mapped file, a row at the place of its key; no crash safety."""

    name = "memory-mapped array"

    def __init__(self, folder: Path, dim: int, rows: int) -> None:
        self.file = folder / "rows.f32"
        mode: Any = "r+" if self.file.exists() else "w+"
        self._rows: Any = np.memmap(self.file, np.float32, mode, shape=(rows, dim))
        # Without this each page that is read brings 31 neighbours along.
        mapped: Any = self._rows.base
        mapped.madvise(mmap.MADV_RANDOM)

    def append(self, keys: Keys, values: Floats) -> None:
        """See `Holder`."""
        self._rows[keys.astype(np.int64)] = values
        self._rows.flush()

    def sync(self) -> None:
        """Each append was flushed."""

    def read(self, keys: Keys) -> Floats:
        """See `Holder`."""
        return np.asarray(self._rows[keys.astype(np.int64)])

    def close(self) -> None:
        """See `Holder`."""
        self._rows = None


class Rocks:
    """RocksDB, as rocksdict opens it, with a synced write-ahead log."""

    name = "rocksdb"

    def __init__(self, folder: Path, dim: int) -> None:
        self.file = folder
        rocks = importlib.import_module("rocksdict")
        options = rocks.Options(raw_mode=True)
        options.create_if_missing(True)
        options.increase_parallelism(2)
        self._db = rocks.Rdict(str(folder), options)
        self._batch = rocks.WriteBatch
        self._synced = rocks.WriteOptions()
        self._synced.sync = True

    def append(self, keys: Keys, values: Floats) -> None:
        """See `Holder`."""
        batch = self._batch(raw_mode=True)
        for key, row in zip(keys, values, strict=True):
            batch.put(key.tobytes(), row.tobytes())
        self._db.write(batch, self._synced)

    def sync(self) -> None:
        """See `Holder`."""
        self._db.flush()

    def read(self, keys: Keys) -> Floats:
        """See `Holder`."""
        found = self._db[[key.tobytes() for key in keys]]
        return np.frombuffer(b"".join(found), np.float32).reshape(len(keys), -1)

    def close(self) -> None:
        """See `Holder`."""
        self._db.close()


def open_holder(name: str, folder: Path, dim: int, rows: int) -> Holder:
    """The holder of this name over a folder, which is made. rows: keys are below."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == Mapped.name:
        return Mapped(folder, dim, rows)
    kinds: dict[str, Any] = {kind.name: kind for kind in (Terrace, LmdbRows, Rocks)}
    holder: Holder = kinds[name](folder, dim)
    return holder


def installed_peers() -> list[str]:
    """Names of the peers that can be opened here."""
    rocks = [Rocks.name] if importlib.util.find_spec("rocksdict") else []
    return [LmdbRows.name, *rocks, Mapped.name]
