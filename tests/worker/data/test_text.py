"""Text files: all good rows in order however they are read, every bad line named or counted."""

from __future__ import annotations

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import DataError
from worker.data.schema import ADULT, AVAZU, CRITEO
from worker.data.text import TextReader

from .oracle import criteo_row, line, numbers_of, rows_of

BAD = [line(1)[:120], b"not a table", b"7" + line(1)[1:], b"\x00\x01", line(3) + b"\tmore"]

kinds = st.lists(st.sampled_from(["good", "good", "good", "blank", *range(len(BAD))]), min_size=1)


def text_of(shape: list[str | int]) -> tuple[bytes, list[int], list[int]]:
    """A file of the shape, the numbers of its good rows' keys, and its bad line numbers."""
    lines, good, bad = [], [], []
    for number, kind in enumerate(shape, start=1):
        if kind == "good":
            good.append(number)
            lines.append(line(number))
        elif kind == "blank":
            lines.append(b"")
        else:
            bad.append(number)
            lines.append(BAD[int(kind)])
    return b"\n".join(lines) + b"\n", good, bad


@given(kinds, st.integers(1, 2000), st.booleans(), st.integers(0, 20), st.integers(0, 20))
@settings(max_examples=60)
def test_any_range_of_the_good_rows_is_read_and_every_bad_line_counted_once(
    shape: list[str | int], piece_bytes: int, compressed: bool, first: int, more: int
) -> None:
    content, good, bad = text_of(shape)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        path.write_bytes(gzip.compress(content) if compressed else content)
        reader = TextReader(CRITEO, bad_lines="skip", piece_bytes=piece_bytes)
        part = rows_of(list(reader.read(path, first, first + more)))
        whole = rows_of(list(reader.read(path)))
        assert reader.count(path) == len(good)
    assert numbers_of(whole) == good
    assert part == whole[first : first + more]
    assert reader.bad_lines == len(bad)


@given(kinds, st.integers(1, 2000), st.booleans())
@settings(max_examples=60)
def test_the_first_bad_line_stops_reading_and_its_number_is_right(
    shape: list[str | int], piece_bytes: int, compressed: bool
) -> None:
    content, good, bad = text_of(shape)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        path.write_bytes(gzip.compress(content) if compressed else content)
        reader = TextReader(CRITEO, piece_bytes=piece_bytes)
        if not bad:
            assert reader.count(path) == len(good)
            return
        with pytest.raises(DataError, match=rf"data\.csv:{bad[0]}: expected ") as caught:
            list(reader.read(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"\t".join([b"1"] * 17), "2: expected 40 tab-separated columns (criteo), got 17; "),
        (b"a,b,c", "2: expected 40 tab-separated columns (criteo), got 1; "),
        (b"9" + line(1)[1:], "2: expected label 0 or 1 in column 1, got '9'; "),
        (
            line(1).replace(b"\t1\t1\t", b"\t1\tfive\t", 1),
            "expected a number in column 3, got 'five'",
        ),
    ],
)
def test_a_bad_line_is_described(tmp_path: Path, bad: bytes, words: str) -> None:
    path = tmp_path / "log.tsv"
    path.write_bytes(line(1) + b"\n" + bad + b"\n" + line(2) + b"\n")
    with pytest.raises(DataError) as caught:
        TextReader(CRITEO).count(path)
    assert f"{path}:" in str(caught.value) and words in str(caught.value)
    assert str(caught.value).endswith("; mend the line, or skip bad lines")


def test_a_header_is_passed_over_with_its_line_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    row = b"1,0,14102100" + b",5" * 21
    path.write_bytes(AVAZU.header + b"\r\n" + row + b"\r\n" + b"cut,off\r\n")
    reader = TextReader(AVAZU, bad_lines="skip")
    assert reader.count(path) == 1 and reader.bad_lines == 1
    with pytest.raises(DataError, match=r"log\.csv:3: expected 24 comma-separated"):
        TextReader(AVAZU).count(path)


def test_a_real_criteo_log_reads_as_plain_python_reads_it(shared_data: Path) -> None:
    path = shared_data / "criteo_kaggle" / "train.csv.gz"
    with gzip.open(path) as file:
        want = [criteo_row(each) for each in file]
    got = rows_of(list(TextReader(CRITEO, piece_bytes=100_000).read(path)))
    assert len(got) == 7200 and sum(label for label, _, _ in got) == sum(row[0] for row in want)
    assert [[key for (key,) in bags] for _, _, bags in got] == [keys for _, _, keys in want]
    assert np.allclose([dense for _, dense, _ in got], [dense for _, dense, _ in want], rtol=1e-6)


def test_real_logs_have_the_keys_that_their_description_counts(shared_data: Path) -> None:
    """Distinct values of the fields as the folder's README gives them."""
    reader = TextReader(ADULT)
    rows = [
        row
        for name in ("adult.data.gz", "adult.test.gz")
        for row in rows_of(list(reader.read(shared_data / "adult" / name)))
    ]
    assert len(rows) == 32_561 + 16_281
    values = [len({bags[feature][0] for _, _, bags in rows}) for feature in range(8)]
    assert values == [9, 16, 7, 15, 6, 5, 2, 42]
