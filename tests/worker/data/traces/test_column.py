"""Columns: one key a line, from the column that was meant; a line without one is named."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ConfigError, DataError
from worker.data.traces.column import Form, form_of, read_column

from ..oracle import text_key

HERE = Path("log.csv")


def keys_of(path: Path, form: Form) -> list[int]:
    return [key for piece in read_column(path, form) for key in piece.keys.tolist()]


@given(
    st.lists(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=3, max_size=3), min_size=1),
    st.sampled_from([",", ";", "\t", "|", " "]),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_integers_are_read_as_the_csv_module_reads_them(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[int]],
    separator: str,
    number: int,
    header: bool,
    quoting: int,
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([["time", "what", "size"]] * header + rows)
    path = tmp_path_factory.getbasetemp() / "log.csv"
    path.write_bytes(text.getvalue().encode())
    head = [line for line in text.getvalue().splitlines() if line][:20]
    form = form_of(path, head, ["time", "what", "size"][number] if header else str(number + 1))
    assert form.header == header and form.integers
    assert keys_of(path, form) == [row[number] % 2**64 for row in rows]


words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)


@given(st.lists(words, min_size=1))
def test_words_are_hashed_by_the_rule_of_training(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "words"
    path.write_bytes("\n".join(lines).encode() + b"\r\n\n")
    form = form_of(path, lines[:20], plain=True, words=True)
    assert keys_of(path, form) == [text_key(line.encode(), 0) % 2**64 for line in lines]


@pytest.mark.parametrize(
    ("head", "column", "name", "described"),
    [
        (["version,time,lbn,size", "1,2,3,4"], None, 2, "csv, integers of column 'lbn' (3)"),
        (["time,Obj_Id,x", "1,a,4"], None, 1, "csv, words of column 'Obj_Id' (2)"),
        (["a,b,c", "1,2,3"], None, 2, "csv, integers of column 'c' (3)"),
        (["id,name", "x,y"], None, 0, "csv, words of column 'id' (1)"),
        (["1,2,3", "1,2,3"], None, 2, "csv, integers of column 3"),
        (["1 2", "3 4"], "1", 0, "csv, integers of column 1"),
        (["7", "8"], None, 0, "text, integers"),
        (["7", "a,b"], None, 0, "text, words"),
        (['"x, y",5', '"z",6'], "1", 0, "csv, words of column 1"),
    ],
)
def test_the_key_column_is_found_and_said(
    head: list[str], column: str | None, name: int, described: str
) -> None:
    form = form_of(HERE, head, column)
    assert (form.number, form.describe()) == (name, described)


def test_a_missing_column_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"column: expected time, lbn, or 1 to 2, got 'key2'"):
        form_of(HERE, ["time,lbn", "1,2"], "key2")
    with pytest.raises(ConfigError, match=r"column: expected 1 to 3, got '4'"):
        form_of(HERE, ["1,2,3"], "4")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1\n2\n\nx3\n", "t:4: expected an integer of 64 bits, got 'x3'; are keys words"),
        ("1\n18446744073709551616\n", "t:2: expected an integer of 64 bits, got '1844"),
        ("1\n-\n", "t:2: expected an integer of 64 bits, got '-'"),
        ("a\nb c\n", "t:2: expected one key a line, got 'b c'"),
        ("1,2\n3,4\n5\n", "t:3: expected at least 2 columns, got '5'"),
        ("1,a\n3,\n", "t:2: expected a key in column 2, got '3,'"),
        ("ab\ncd\x01\n", "t:2: expected text, got "),
    ],
)
def test_a_line_that_has_no_key_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t").write_text(text)
    form = form_of(tmp_path / "t", [text.splitlines()[0]])
    with pytest.raises(DataError) as caught:
        keys_of(tmp_path / "t", form)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_separator_in_quotes_separates_nothing(tmp_path: Path) -> None:
    (tmp_path / "t").write_text('"a, b",5\n"c",6\n')
    assert keys_of(tmp_path / "t", Form(",", 1, "2", True, False)) == [5, 6]
    first = keys_of(tmp_path / "t", Form(",", 0, "1", False, False))
    assert first == [text_key(word, 0) % 2**64 for word in (b"a, b", b"c")]
