"""Columns in a Parquet file, against pyarrow's own reader and writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ps.column import ANY, Column
from ps.parquet import ParquetFile, write_parquet
from storage.errors import DataError

VALUES = np.arange(30, dtype=np.float32).reshape(5, 6)


def read(path: Path, name: str, rows: int = 2) -> np.ndarray:
    file = ParquetFile(path)
    try:
        return np.concatenate([piece[name] for piece in file.pieces([name], rows)])
    finally:
        file.close()


def test_arrays_are_columns_without_nulls(tmp_path: Path) -> None:
    keys = np.array([0, 1, 2**63, 5, 2**64 - 1], np.uint64)
    write_parquet(tmp_path / "f", {"keys": keys, "embeddings": VALUES[:, 1:5]})
    table = pq.read_table(tmp_path / "f")
    assert not any(field.nullable for field in table.schema)
    assert table["key"].to_pylist() == keys.tolist()
    assert table["embedding"].to_pylist() == VALUES[:, 1:5].tolist()
    assert np.array_equal(read(tmp_path / "f", "embeddings"), VALUES[:, 1:5])
    assert np.array_equal(read(tmp_path / "f", "keys", 100), keys)


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        (pa.list_(pa.float32(), 6), Column(("float32",), (6,))),
        (pa.list_(pa.float32()), Column(("float32",), (ANY,))),
        (pa.large_list(pa.float64()), Column(("float64",), (ANY,))),
        (pa.list_(pa.float16()), Column(("float16",), (ANY,))),
    ],
)
def test_any_kind_of_list_is_read(tmp_path: Path, kind: pa.DataType, column: Column) -> None:
    values = [np.asarray(row, column.dtypes[0]) for row in VALUES]
    pq.write_table(pa.table({"embedding": pa.array(values, type=kind)}), tmp_path / "f")
    file = ParquetFile(tmp_path / "f")
    assert file.columns == {"embeddings": column}
    file.close()
    assert np.array_equal(read(tmp_path / "f", "embeddings"), VALUES)


@pytest.mark.parametrize("kind", [pa.string(), pa.date32(), pa.list_(pa.string())])
def test_what_is_no_number_is_named(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"key": pa.array([None], type=kind)}), tmp_path / "f")
    file = ParquetFile(tmp_path / "f")
    assert not set(file.columns["keys"].dtypes) & {"int64", "uint64", "float32"}
    file.close()


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"key": pa.array([1, None, 3])}, "1 nulls"),
        ({"embedding": pa.array([[1.0], None])}, "1 nulls"),
        ({"embedding": pa.array([[1.0, 2.0], [1.0, None]])}, "1 nulls"),
        ({"embedding": pa.array([[1.0, 2.0], [1.0]])}, "lengths from 1 to 2"),
        ({"embedding": pa.array([[1.0, 2.0], [], [1.0] * 4])}, "lengths from 0 to 4"),
    ],
)
def test_holes_and_ragged_lists_are_refused(
    tmp_path: Path, column: dict[str, pa.Array], words: str
) -> None:
    pq.write_table(pa.table(column), tmp_path / "f")
    with pytest.raises(DataError, match=words):
        read(tmp_path / "f", "keys" if "key" in column else "embeddings", 3)


def test_two_columns_of_one_name_are_none(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["key", "key"])
    pq.write_table(table, tmp_path / "f")
    file = ParquetFile(tmp_path / "f")
    assert file.columns == {}
    file.close()


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_cut_file_is_refused_in_one_line(tmp_path: Path, kept: int) -> None:
    write_parquet(tmp_path / "f", {"keys": np.arange(100)})
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:kept])
    with pytest.raises(DataError, match="expected a Parquet file") as error:
        ParquetFile(tmp_path / "f")
    assert "\n" not in str(error.value)


def test_damage_inside_is_an_error_of_ours(tmp_path: Path) -> None:
    write_parquet(tmp_path / "f", {"keys": np.arange(100_000, dtype=np.uint64)})
    content = bytearray((tmp_path / "f").read_bytes())
    content[4:400] = bytes(396)
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "f", "keys")
