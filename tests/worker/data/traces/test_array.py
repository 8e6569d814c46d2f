"""Arrays: integers of any width and shape, and recorded batches; nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage.errors import DataError
from worker.data.traces.array import read_array, read_header

from ..oracle import mix


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "<u8", ">i8"])
def test_integers_of_any_width_are_keys_in_c_order(tmp_path: Path, dtype: str) -> None:
    array = np.arange(-6 if "i" in dtype else 0, 6)[:6].astype(dtype).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    assert "npy, " in read_header(tmp_path / "a.npy").describe()
    (piece,) = read_array(tmp_path / "a.npy")
    assert piece.keys.tolist() == [int(key) % 2**64 for key in array.reshape(-1)]
    assert piece.batches is None


@pytest.mark.parametrize("table", [False, True])
def test_recorded_batches_come_back(tmp_path: Path, table: bool) -> None:
    fields = [("batch", "<u4"), ("key", "<u8")] + [("table", "<u2")] * table
    rows = [(0, 5, 0), (0, 5, 1), (1, 2**64 - 1, 2)]
    np.save(tmp_path / "a.npy", np.array([row[: 2 + table] for row in rows], fields))
    assert read_header(tmp_path / "a.npy").recorded
    (piece,) = read_array(tmp_path / "a.npy")
    assert piece.batches is not None and piece.batches.tolist() == [0, 0, 1]
    salts = [mix(row[2]) if table and row[2] else 0 for row in rows]
    assert piece.keys.tolist() == [row[1] ^ salt for row, salt in zip(rows, salts, strict=True)]


@pytest.mark.parametrize(
    "array",
    [np.zeros(3), np.zeros((2, 2), np.int64, order="F"), np.zeros(2, [("key", "<u8")])],
    ids=["floats", "fortran", "fields"],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"a\.npy: expected integers in C order"):
        read_header(tmp_path / "a.npy")


def test_a_cut_off_array_says_how_much_there_is(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(100))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-12])
    with pytest.raises(DataError, match="expected 100 keys as its header says, got 98"):
        list(read_array(tmp_path / "a.npy"))
    (tmp_path / "a.npy").write_bytes(whole[:40])
    with pytest.raises(DataError, match=r"expected a NumPy \.npy header"):
        read_header(tmp_path / "a.npy")
