"""Tensors in a file, against the library's own reader and writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ps.safetensors import SafetensorsFile, write_safetensors
from storage.errors import DataError, StoreError


def test_views_with_strides_are_written_as_they_read(tmp_path: Path) -> None:
    rows = np.arange(30, dtype=np.float32).reshape(5, 6)
    write_safetensors(tmp_path / "f", {"embeddings": rows[:, :4], "state": rows[::-1, 4:]})
    found = load_file(tmp_path / "f")
    assert np.array_equal(found["embeddings"], rows[:, :4])
    assert np.array_equal(found["state"], rows[::-1, 4:])


@pytest.mark.parametrize("rows", [1, 3, 5, 100])
def test_pieces_in_order_make_the_whole(tmp_path: Path, rows: int) -> None:
    keys = np.array([5, 2**64 - 1, 0, 7, 9], np.uint64)
    save_file({"keys": keys, "other": np.zeros((2, 2))}, tmp_path / "f")
    file = SafetensorsFile(tmp_path / "f")
    pieces = [piece["keys"] for piece in file.pieces(["keys"], rows)]
    file.close()
    assert np.array_equal(np.concatenate(pieces), keys)
    assert max(map(len, pieces)) == min(rows, 5)


def test_tensors_of_other_lengths_are_refused(tmp_path: Path) -> None:
    save_file({"keys": np.zeros(3, np.int64), "steps": np.zeros(4, np.uint32)}, tmp_path / "f")
    file = SafetensorsFile(tmp_path / "f")
    with pytest.raises(DataError, match="'steps' has 4 rows, expected the 3 of 'keys'"):
        next(file.pieces(["keys", "steps"], 2))
    file.close()


def test_a_single_number_is_a_column_that_nothing_takes(tmp_path: Path) -> None:
    save_file({"keys": np.array(3)}, tmp_path / "f")
    file = SafetensorsFile(tmp_path / "f")
    assert file.columns["keys"].shape == (0, 0)
    file.close()


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_a_cut_file_is_refused(tmp_path: Path, kept: int) -> None:
    save_file({"keys": np.zeros(3, np.int64)}, tmp_path / "f")
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:kept])
    with pytest.raises(DataError, match="expected a safetensors file"):
        SafetensorsFile(tmp_path / "f")


def test_what_the_disk_refuses_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises((StoreError, OSError)):
        write_safetensors(tmp_path / "absent" / "f", {"keys": np.zeros(3, np.int64)})
