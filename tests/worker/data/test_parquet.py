"""Parquet: columns become labels, dense values and bags by the rule, whatever the row groups."""

from __future__ import annotations

import datetime
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ConfigError, DataError
from worker.data import open_dataset
from worker.data.parquet import ParquetReader, is_parquet
from worker.data.schema import CRITEO
from worker.data.text import TextReader

from .oracle import integer_key, line, rows_of, text_key

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: dict, rows_per_group: int | None = None) -> Path:
    parquet.write_table(arrow.table(columns), path, row_group_size=rows_per_group)
    return path


def test_each_type_of_column_is_read_by_the_rule(tmp_path: Path) -> None:
    day = datetime.date(1970, 1, 11)
    path = write(
        tmp_path / "data",
        {
            "big": arrow.array([2**64 - 1, 0], arrow.uint64()),
            "price": arrow.array([-1.5, math.nan], arrow.float32()),
            "click": arrow.array([True, False]),
            "word": arrow.array(["68fd1e64", None]),
            "kind": arrow.array(["a", "b"]).dictionary_encode(),
            "day": arrow.array([day, None], arrow.date32()),
            "seen": arrow.array([[5, None, -5], None], arrow.list_(arrow.int32())),
            "tags": arrow.array([[], ["x", "y"]], arrow.large_list(arrow.string())),
            "weight": arrow.array([None, math.inf], arrow.float64()),
            "flag": arrow.array([True, None]),
        },
    )
    reader = ParquetReader(path)
    assert reader.dense_names == ("price", "weight")
    assert reader.feature_names == ("big", "word", "kind", "day", "seen", "tags", "flag")
    one, two = rows_of(list(reader.read(path)))
    assert (one[0], two[0]) == (1.0, 0.0)
    assert np.allclose([one[1], two[1]], [[-math.log(2.5), 0.0], [0.0, 0.0]])
    missing = [text_key(b"", feature) for feature in range(7)]
    assert one[2] == [
        [integer_key(-1, 0)],
        [text_key(b"68fd1e64", 1)],
        [text_key(b"a", 2)],
        [integer_key(10, 3)],
        [integer_key(5, 4), missing[4], integer_key(-5, 4)],
        [],
        [integer_key(1, 6)],
    ]
    assert two[2] == [
        [integer_key(0, 0)],
        [missing[1]],
        [text_key(b"b", 2)],
        [missing[3]],
        [],
        [text_key(b"x", 5), text_key(b"y", 5)],
        [missing[6]],
    ]


def test_a_criteo_log_has_the_same_keys_as_text_and_as_parquet(tmp_path: Path) -> None:
    lines = [line(number) for number in range(50)]
    (tmp_path / "text").write_bytes(b"\n".join(lines))
    columns = list(zip(*(each.decode().split("\t") for each in lines), strict=True))
    path = write(
        tmp_path / "table",
        {
            column.name: [int(x) if place == 0 else float(x) if place < 14 else x for x in values]
            for place, (column, values) in enumerate(zip(CRITEO.columns, columns, strict=True))
        },
    )
    text = rows_of(list(TextReader(CRITEO).read(tmp_path / "text")))
    assert rows_of(list(ParquetReader(path).read(path))) == text


labels = st.lists(st.sampled_from([0, 1, 0, 1, 2, None]), min_size=1, max_size=30)


@given(labels, st.integers(1, 9), st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=60)
def test_any_range_of_the_good_rows_is_read_and_bad_labels_counted_once(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[int | None],
    rows_per_group: int,
    first: int,
    more: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "labels.parquet"
    bags = [[number] * (number % 3) for number in range(len(values))]
    columns = {
        "label": arrow.array(values, arrow.int8()),
        "bag": arrow.array(bags, arrow.list_(arrow.int64())),
    }
    write(path, columns, rows_per_group)
    reader = ParquetReader(path, bad_lines="skip")
    part = rows_of(list(reader.read(path, first, first + more)))
    whole = rows_of(list(reader.read(path)))
    good = [number for number, value in enumerate(values) if value in (0, 1)]
    assert [label for label, _, _ in whole] == [values[number] for number in good]
    keys = [[integer_key(number, 0)] * (number % 3) for number in good]
    assert [bags for _, _, bags in whole] == [[bag] for bag in keys]
    assert part == whole[first : first + more]
    assert reader.count(path) == len(good)
    assert reader.bad_lines == len(values) - len(good)
    if len(good) < len(values):
        row = 1 + next(number for number, value in enumerate(values) if value not in (0, 1))
        with pytest.raises(DataError, match=rf"labels\.parquet: row {row}: expected label 0 or 1"):
            list(ParquetReader(path).read(path))


def test_a_folder_holds_out_its_last_rows(tmp_path: Path) -> None:
    for number in range(3):
        write(
            tmp_path / f"part-{number}.parquet",
            {"label": [0, 1], "id": [2 * number, 2 * number + 1]},
        )
    data = open_dataset(str(tmp_path), holdout=0.34)
    keys = [integer_key(number, 0) for number in range(6)]
    assert [bags[0][0] for _, _, bags in rows_of(list(data.train(3)))] == keys[:4]
    assert [bags[0][0] for _, _, bags in rows_of(list(data.train(3, start=1)))] == keys[3:4]
    assert [bags[0][0] for _, _, bags in rows_of(list(data.test(3)))] == keys[4:]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"clicked": [1]}, "expected a label column named label, click, target"),
        ({"label": ["yes"]}, "expected numbers in 'label', got string"),
        ({"label": [1], "pair": [{"a": 1}]}, "column 'pair' has type struct"),
        ({"label": [1], "x": [[0.5]]}, "column 'x' has type list"),
        ({"label": arrow.array([], arrow.int8())}, "got an empty Parquet file"),
    ],
)
def test_columns_that_cannot_be_read_are_named(tmp_path: Path, columns: dict, words: str) -> None:
    path = write(tmp_path / "odd.parquet", columns)
    with pytest.raises(DataError) as caught:
        open_dataset(str(path))
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"label": [1], "x": [1]})
    write(tmp_path / "b.parquet", {"label": [1], "y": [1]})
    with pytest.raises(DataError, match=r"b\.parquet: expected the columns label int64, x int64"):
        list(open_dataset(str(tmp_path)).train(1))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.parquet", {"label": [1] * 1000, "x": list(range(1000))})
    content = path.read_bytes()
    assert is_parquet(path)
    path.write_bytes(content[:-50])
    with pytest.raises(DataError, match=r"bad\.parquet: expected a Parquet file"):
        open_dataset(str(path))
    path.write_bytes(content[:40] + b"\xff" * 200 + content[240:])
    with pytest.raises(DataError, match=r"bad\.parquet: expected a Parquet file"):
        list(open_dataset(str(path)).train(100))


def test_without_pyarrow_the_user_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "data.parquet", {"label": [1], "x": [1]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'terrace-ps\[data\]'"):
        open_dataset(str(path))
