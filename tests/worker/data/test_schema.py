"""Schemas: a format is recognised by its lines, and its columns are what was published."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from worker.data.schema import ADULT, AVAZU, CRITEO, SCHEMAS, Kind, Schema, detect

CRITEO_LINE = b"\t".join([b"1", *[b"5"] * 13, *[b"68fd1e64"] * 26])
ADULT_LINE = b"39, ?, 77516, Bachelors, 13, a, b, c, d, Male, 0, 0, 40, United-States, <=50K."


@pytest.mark.parametrize(
    ("lines", "schema"),
    [
        ([CRITEO_LINE], CRITEO),
        ([b"garbage", CRITEO_LINE], CRITEO),
        ([b"0\tcut off"], CRITEO),
        ([AVAZU.header, b"1,0,14102100"], AVAZU),
        ([ADULT_LINE], ADULT),
        ([b"|1x3 Cross validator", ADULT_LINE], ADULT),
        ([b"hello", b"a,b"], None),
        ([], None),
    ],
)
def test_a_format_is_known_by_its_lines(lines: list[bytes], schema: Schema | None) -> None:
    assert detect(lines) is schema


def test_columns_are_counted_as_published() -> None:
    sizes = {
        schema.name: (len(schema.columns), len(schema.dense_names), len(schema.feature_names))
        for schema in SCHEMAS
    }
    assert sizes == {"criteo": (40, 13, 26), "avazu": (24, 0, 22), "adult": (15, 6, 8)}
    assert all(
        sum(column.kind == Kind.LABEL for column in schema.columns) == 1 for schema in SCHEMAS
    )


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("criteo_kaggle/train.csv.gz", CRITEO),
        ("avazu/train.csv.gz", AVAZU),
        ("adult/adult.data.gz", ADULT),
        ("adult/adult.test.gz", ADULT),
    ],
)
def test_real_logs_are_recognised(shared_data: Path, name: str, schema: Schema) -> None:
    with gzip.open(shared_data / name) as file:
        head = [file.readline().rstrip(b"\n") for _ in range(3)]
    assert detect(head) is schema
