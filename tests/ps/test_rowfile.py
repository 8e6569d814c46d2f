"""Rows of one file, checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import ps
from ps.column import bare_columns, whole_columns
from ps.digest import rows_digest
from ps.rowfile import FORMATS, PIECE_BYTES, RowFile, format_named, format_of, write_rows
from storage.errors import ConfigError, DataError
from storage.rows import Rows

ADS = ps.Table("ads", dim=256, optimizer=ps.Adam())


def rows_of(table: ps.Table, count: int) -> Rows:
    rng = np.random.default_rng(count)
    rows = Rows.empty(count, table.width)
    rows.keys[:] = rng.permutation(count)
    rows.values[:] = rng.normal(size=rows.values.shape)
    rows.steps[:] = np.arange(count)
    return rows


@pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
def test_what_is_written_is_read_in_bounded_pieces(tmp_path: Path, form) -> None:
    rows = rows_of(ADS, 4000)
    path = tmp_path / "f"
    write_rows(path, rows, ADS.dim, form)
    assert format_of(path) == form
    with RowFile(path, ADS, form, whole_columns(ADS)) as file:
        pieces = list(file.pieces())
        assert file.check() == (4000, rows_digest("ads", rows))
    assert all(piece.values.nbytes <= PIECE_BYTES for piece in pieces)
    assert all(piece.dirty.all() for piece in pieces)
    for field in ("keys", "values", "steps"):
        found = np.concatenate([getattr(piece, field) for piece in pieces])
        assert np.array_equal(found, getattr(rows, field))


@pytest.mark.parametrize("keys_at_once", [1, 7, 100, 1000])
def test_a_duplicate_is_found_in_any_number_of_passes(tmp_path: Path, keys_at_once: int) -> None:
    table = ps.Table("ads", dim=2)
    keys = np.arange(100, dtype=np.uint64)
    columns = {"keys": keys, "embeddings": np.zeros((100, 2), np.float32)}
    save_file(columns, tmp_path / "sound")
    keys[91] = 3
    save_file(columns, tmp_path / "twice")
    form = FORMATS["safetensors"]
    with RowFile(tmp_path / "sound", table, form, bare_columns(table)) as file:
        assert file.check(keys_at_once=keys_at_once)[0] == 100
    with (
        RowFile(tmp_path / "twice", table, form, bare_columns(table)) as file,
        pytest.raises(DataError, match="key 3 twice"),
    ):
        file.check(keys_at_once=keys_at_once)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    save_file({"keys": np.zeros(1, np.int64), "vectors": np.zeros((1, 4))}, tmp_path / "f")
    with pytest.raises(DataError, match="rename or add 'embeddings'"):
        RowFile(tmp_path / "f", ADS, FORMATS["safetensors"], bare_columns(ADS))


def test_a_file_without_rows_has_none(tmp_path: Path) -> None:
    empty = {"keys": np.zeros(0, np.uint64), "embeddings": np.zeros((0, 256), np.float32)}
    for form in FORMATS.values():
        form.write(tmp_path / form.name, empty)
        with RowFile(tmp_path / form.name, ADS, form, bare_columns(ADS)) as file:
            assert file.check() == (0, 0)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of safetensors, parquet, got 'pickle'"):
        format_named("pickle")
