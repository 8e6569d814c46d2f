"""Salvage: damage is told by table, block and rows; what is whole is kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ps
from ps.salvage import diagnose
from ps.shrink import repair
from storage.errors import CorruptError
from storage.log import BlockLog

ADS = ps.Table("ads", dim=16, optimizer=ps.SGD(lr=0.1), init=ps.Zeros())
ROWS = 4000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """All rows are 1 in a checkpoint, half are 2 in another, and a quarter 3 in the last cut."""
    with ps.open(tmp_path, [ADS], ram="4MiB") as made:
        for value, count in ((1, ROWS), (2, ROWS // 2), (3, ROWS // 4)):
            made.write("ads", np.arange(count), np.full((count, 16), value, np.float32))
            if value < 3:
                made.checkpoint(value, {"value": value})
    return tmp_path


def change(path: Path, edit: Callable[[BlockLog, Any], None]) -> None:
    with closing(BlockLog(path, ["ads"])) as log, log.transaction(write=True) as txn:
        edit(log, txn)


def flip(database: Callable[[BlockLog], Any], key: bytes) -> Callable[[BlockLog, Any], None]:
    def edit(log: BlockLog, txn: Any) -> None:
        value = bytearray(txn.get(key, db=database(log)))
        value[len(value) // 2] ^= 1
        txn.put(key, bytes(value), db=database(log))

    return edit


def flip_block(number: int) -> Callable[[BlockLog, Any], None]:
    return flip(lambda log: log._blocks["ads"], np.uint64(number).tobytes())


def flip_fact(name: str) -> Callable[[BlockLog, Any], None]:
    return flip(lambda log: log._facts, name.encode())


def values(path: Path) -> np.ndarray:
    with ps.open(path, None, ram="4MiB") as opened:
        assert opened.check() == []
        return opened.read("ads", np.arange(ROWS))[:, 0]


def test_a_sound_store_is_called_sound_and_stays_as_it_is(store: Path) -> None:
    before = (store / "data.mdb").read_bytes()
    found = diagnose(store)
    assert (found.broken, found.rows, found.lost) == ([], {"ads": ROWS}, 0)
    assert (store / "data.mdb").read_bytes() == before


def test_rows_of_a_damaged_block_show_an_older_version_or_start_anew(store: Path) -> None:
    expected = values(store)
    with ps.open(store, None, ram="4MiB") as opened:
        tier = opened.stacks["ads"].ssd
        where = tier._index.find(np.arange(ROWS, dtype=np.uint64)) >> tier.shape.place_bits
    newest, middle, oldest = int(where[0]), int(where[ROWS // 3]), int(where[-1])
    for number in (newest, middle, oldest):
        change(store, flip_block(number))
    found = diagnose(store)
    assert len(found.broken) == 3 and all("'ads': block" in line for line in found.broken)
    assert any(f"block {oldest} is damaged" in line for line in found.broken)
    report = repair(store)
    assert report.lost == found.broken
    expected[where == newest], expected[where == middle], expected[where == oldest] = 2, 1, 0
    assert values(store).tolist() == expected.tolist()
    assert (store / "data.damaged.mdb").exists()
    assert diagnose(store).broken == []
    with ps.open(store, None, ram="4MiB") as opened:
        assert opened.resume()[0] == 2


@pytest.mark.parametrize(
    ("fact", "checkpoints", "shown"),
    [("cut", [1, 2], 2), ("checkpoint/000000000001", [2], 3), ("checkpoint/000000000002", [1], 3)],
)
def test_damaged_facts_are_given_up(
    store: Path, fact: str, checkpoints: list[int], shown: int
) -> None:
    change(store, flip_fact(fact))
    with pytest.raises(CorruptError, match="repair"):
        ps.open(store, None, ram="4MiB")
    found = diagnose(store)
    assert len(found.broken) == 1
    repair(store)
    assert diagnose(store).broken == []
    assert values(store)[0] == shown
    with ps.open(store, None, ram="4MiB") as opened:
        assert opened.checkpoints == checkpoints
        assert opened.resume()[1]["value"] == checkpoints[-1]


def test_directory_block_and_deleted_keys(store: Path) -> None:
    with ps.open(store, None, ram="4MiB") as opened:
        opened.delete("ads", np.arange(10))
    change(store, flip(lambda log: log._directories["ads"].database, np.uint64(0).tobytes()))
    change(store, flip_block(1))
    change(store, flip(lambda log: log.tombstones["ads"]._database, np.uint64(0).tobytes()))
    with pytest.raises(CorruptError):
        ps.open(store, None, ram="4MiB")
    found = diagnose(store)
    assert len(found.broken) == 2
    assert any("which ones is not known" in line for line in found.broken)
    repair(store)
    assert diagnose(store).broken == []
    assert set(values(store)[20:].tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_a_store_without_a_cut_shows_nothing(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS], ram="4MiB") as made:
        made.abandon()
    assert diagnose(tmp_path).rows == {"ads": 0}


def test_rows_are_those_of_the_last_cut_and_not_of_what_came_after(store: Path) -> None:
    with ps.open(store, None, ram="4MiB") as opened:
        opened.delete("ads", np.arange(10))
        opened.write("ads", np.arange(ROWS, 2 * ROWS), np.ones((ROWS, 16)))
        opened.stacks["ads"].hierarchy.flush()
        opened.abandon()  # as a kill would
    assert diagnose(store).rows == {"ads": ROWS - 10}
    with ps.open(store, None, ram="4MiB") as opened:
        assert len(opened.stacks["ads"].ssd) == ROWS - 10
