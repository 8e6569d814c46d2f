"""Pages: a sound file is called sound, and damage that LMDB would trip over is found before."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from storage.environment import PAGE, Environment
from storage.errors import CorruptError
from storage.pages import page_damage

META, ROOT, TRANSACTION = 16, 128, 144


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed file with some facts."""
    for number in range(3):
        with open_facts(tmp_path) as facts:
            facts.commit({f"{number}/{i}": bytes(100 * i) for i in range(60)})
    return tmp_path


def open_facts(folder: Path) -> closing[Environment]:
    return closing(Environment(folder, databases=["more"], disk_bytes=8 << 20, transactions=2))


def flip(folder: Path, place: int, bit: int) -> None:
    raw = bytearray((folder / "data.mdb").read_bytes())
    raw[place] ^= 1 << bit
    (folder / "data.mdb").write_bytes(raw)


def transactions(folder: Path) -> list[int]:
    raw = (folder / "data.mdb").read_bytes()
    return [int.from_bytes(raw[at + TRANSACTION : at + TRANSACTION + 8], "little")
            for at in (0, PAGE)]  # fmt: skip


def test_a_sound_file_and_none_at_all_are_sound(folder: Path, tmp_path: Path) -> None:
    assert page_damage(folder) == []
    assert page_damage(tmp_path / "nowhere") == []


@pytest.mark.parametrize("place", [META, ROOT], ids=["magic", "root"])
def test_a_flip_in_the_newest_meta_page_is_found(folder: Path, place: int) -> None:
    both = transactions(folder)
    flip(folder, PAGE * both.index(max(both)) + place, 3)
    assert len(page_damage(folder)) > 0


def test_an_older_transaction_that_looks_newer_is_found(folder: Path) -> None:
    """LMDB would take it, and show what was true a transaction ago."""
    both = transactions(folder)
    flip(folder, PAGE * both.index(min(both)) + TRANSACTION + 1, 2)
    (line,) = page_damage(folder)
    assert "transactions in a row" in line and str(folder) in line


def test_a_file_that_was_cut_short_is_found(folder: Path) -> None:
    raw = (folder / "data.mdb").read_bytes()
    for left in (len(raw) // 2, PAGE, 100):
        (folder / "data.mdb").write_bytes(raw[:left])
        assert len(page_damage(folder)) > 0


def test_a_damaged_name_of_a_database_is_not_made_anew(folder: Path) -> None:
    with open_facts(folder) as facts:
        facts.database("more")
    raw = (folder / "data.mdb").read_bytes()
    (folder / "data.mdb").write_bytes(raw.replace(b"more", b"mose"))
    assert page_damage(folder) == []
    with pytest.raises(CorruptError, match=r"\['mose'\], which nobody made"):
        open_facts(folder)
