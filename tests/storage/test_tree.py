"""Tree: what LMDB says is there is found, nothing else is, and garbage does no harm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from storage.places import Places
from storage.tree import DEPTH, PAGE, fetch, locate, roots

SIZE = PAGE - 16


@contextmanager
def environment(path: Path) -> Iterator[tuple[Any, Any]]:
    with lmdb.open(str(path), map_size=1 << 30, max_dbs=4) as env:
        yield env, env.open_db(b"blocks/t", integerkey=True)


def key(number: int) -> bytes:
    return np.uint64(number).tobytes()


def value(number: int, size: int = SIZE) -> bytes:
    """With its number where a block has it."""
    found = np.full(size, number % 251, np.uint8)
    found[8:16] = np.frombuffer(key(number), np.uint8)
    return found.tobytes()


def fetched(
    path: Path, root: int, numbers: np.ndarray, size: int = SIZE, places: Any = None
) -> tuple[Any, Any]:
    out, found = np.zeros((len(numbers), size), np.uint8), np.zeros(len(numbers), np.bool_)
    places = np.zeros(len(numbers), np.uint32) if places is None else places
    fd = os.open(path / "data.mdb", os.O_RDONLY)
    try:
        fetch(fd, root, numbers, places, out, found, np.zeros(1, np.int64), 3,
              np.empty((DEPTH, PAGE // 2), np.uint16), np.empty(size + 16, np.uint8))  # fmt: skip
    finally:
        os.close(fd)
    return out, found


def roots_of(path: Path, transaction: int) -> dict[str, int]:
    fd = os.open(path / "data.mdb", os.O_RDONLY)
    try:
        return roots(fd, transaction)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("count", "pages"), [(0, 1), (1, 1), (40, 2), (400, 1), (400, 2), (30_000, 1)]
)
def test_what_the_library_has_is_found_and_nothing_else(
    tmp_path: Path, count: int, pages: int
) -> None:
    rng, size = np.random.default_rng(count), pages * PAGE - 16
    with environment(tmp_path) as (env, blocks):
        there = np.unique(rng.integers(0, 4 * count + 1, count))
        with env.begin(write=True) as txn:
            for number in there.tolist():
                txn.put(key(number), value(number, size), db=blocks)
        with env.begin(write=True) as txn:
            for number in there[::3].tolist():
                txn.delete(key(number), db=blocks)
        there = np.setdiff1d(there, there[::3])
        asked = np.arange(0, 4 * count + 9, max(1, count // 500))
        with env.begin() as txn:
            root = roots_of(tmp_path, txn.id())["blocks/t"]
            if not len(there):
                assert root == -1 or not fetched(tmp_path, root, asked, size)[1].any()
                return
            out, found = fetched(tmp_path, root, asked, size)
        assert found.tolist() == np.isin(asked, there).tolist()
        assert [row.tobytes() for row in out[found]] == [
            value(number, size) for number in asked[found].tolist()
        ]
        wrong_size = fetched(tmp_path, root, asked, size + PAGE)[1]
        assert not wrong_size.any()


def test_a_snapshot_that_is_gone_or_another_format_has_no_roots(tmp_path: Path) -> None:
    with environment(tmp_path) as (env, blocks):
        for number in range(3):
            with env.begin(write=True) as txn:
                txn.put(key(number), value(number), db=blocks)
        newest = env.info()["last_txnid"]
        assert "blocks/t" in roots_of(tmp_path, newest)
        assert roots_of(tmp_path, newest - 2) == {} == roots_of(tmp_path, newest + 2)
    file = tmp_path / "data.mdb"
    content = bytearray(file.read_bytes())
    for page in (0, 1):
        content[page * PAGE + 20] = 2  # the version
    file.write_bytes(content)
    assert roots_of(tmp_path, newest) == {}


def test_many_databases_fill_more_than_a_page(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 28, max_dbs=300) as env:
        names = [f"blocks/{i:04d}" for i in range(250)]
        made = [env.open_db(name.encode(), integerkey=True) for name in names]
        with env.begin(write=True) as txn:
            for i, database in enumerate(made):
                txn.put(key(i), value(i), db=database)
        found = roots_of(tmp_path, env.info()["last_txnid"])
        assert sorted(found) == names
        for i, name in enumerate(names[::50]):
            out, there = fetched(tmp_path, found[name], np.array([50 * i]))
            assert there.all() and out[0].tobytes() == value(50 * i)


def test_places_are_found_and_taken_for_hints(tmp_path: Path) -> None:
    with environment(tmp_path) as (env, blocks):
        with env.begin(write=True) as txn:
            for number in range(9000):
                txn.put(key(number), value(number), db=blocks)
        with env.begin(write=True) as txn:
            for number in range(0, 9000, 7):
                txn.delete(key(number), db=blocks)
        places = Places()
        places.reserve(0, 8000)
        fd = os.open(tmp_path / "data.mdb", os.O_RDONLY)
        with env.begin() as txn:
            root = roots(fd, txn.id())["blocks/t"]
            locate(fd, root, 100, 7000, places.bases, np.empty((DEPTH, PAGE // 2), np.uint16))
            os.close(fd)
            numbers = np.arange(8000)
            known, there = places.of(numbers) > 0, numbers % 7 > 0
            assert known.tolist() == (there & (numbers >= 100) & (numbers < 7000)).tolist()
            right = places.of(numbers)
            _, found = fetched(tmp_path, root, numbers, places=right)
            assert found.tolist() == there.tolist() == (right > 0).tolist()
            wrong = np.roll(right, 1)  # another block, or none, on each of these pages
            out, found = fetched(tmp_path, root, numbers, places=wrong)
            assert found.tolist() == there.tolist()
            assert out[4999].tobytes() == value(4999)
            only_hints, found = fetched(tmp_path, 0, numbers, places=right)
            assert found.tolist() == there.tolist() and (only_hints[found] == out[found]).all()


@pytest.mark.parametrize("seed", range(20))
def test_garbage_in_any_page_does_no_harm(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with environment(tmp_path) as (env, blocks):
        with env.begin(write=True) as txn:
            for number in range(400):
                txn.put(key(number), value(number), db=blocks)
        newest = env.info()["last_txnid"]
    root = roots_of(tmp_path, newest)["blocks/t"]
    file = tmp_path / "data.mdb"
    content = np.frombuffer(file.read_bytes(), np.uint8).copy()
    pages = content.reshape(-1, PAGE)
    is_tree = (pages[:, 10] & 3 != 0) & (pages[:, 8] == 0)
    for page in np.flatnonzero(is_tree)[1:].tolist():
        width = PAGE if seed % 2 else 64
        pages[page, 10:width] = rng.integers(0, 256, width - 10)
        pages[page, 10] = rng.integers(1, 3)
    file.write_bytes(content.tobytes()[: -PAGE * (seed % 3) or None])
    for start in (root, 0, int(rng.integers(0, 500)), -1, 1 << 50):
        out, found = fetched(tmp_path, start, np.arange(400))
        assert out.shape == (400, SIZE) and found.shape == (400,)
    roots_of(tmp_path, newest)
    places = Places()
    places.reserve(0, 400)
    fd = os.open(file, os.O_RDONLY)
    locate(fd, root, 0, 400, places.bases, np.empty((DEPTH, PAGE // 2), np.uint16))
    os.close(fd)
