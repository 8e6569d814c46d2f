"""The parser: lines to numbers and keys as plain Python would, and bad lines told from good."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.data.parse import (
    BAD_COLUMNS,
    BAD_LABEL,
    BAD_NUMBER,
    GOOD,
    PASSED,
    layout,
    parse,
    scan,
)
from worker.data.schema import ADULT, CRITEO, Column, Kind, Schema

from .oracle import criteo_row, text_key

integers = st.one_of(st.just(b""), st.integers(-(10**12), 10**12).map(lambda x: b"%d" % x))
tokens = st.one_of(
    st.just(b""),
    st.integers(0, 2**32 - 1).map(lambda x: b"%08x" % x),
    st.binary(max_size=10).map(lambda x: x.translate(None, b"\t\n\r")),
)
criteo_lines = st.tuples(
    st.sampled_from([b"0", b"1"]),
    st.lists(integers, min_size=13, max_size=13),
    st.lists(tokens, min_size=26, max_size=26),
    st.sampled_from([b"", b"\r"]),
).map(lambda parts: b"\t".join([parts[0], *parts[1], *parts[2]]) + parts[3])


def run(schema: Schema, lines: list[bytes]) -> tuple[list[int], list[int], tuple[np.ndarray, ...]]:
    text = np.frombuffer(b"".join(line + b"\n" for line in lines), dtype=np.uint8)
    shape = layout(schema)
    found = scan(text, len(lines), shape)
    good = np.flatnonzero(found.verdicts == GOOD)
    return found.verdicts.tolist(), found.details.tolist(), parse(text, found, good, shape)


@given(st.lists(criteo_lines, min_size=1, max_size=8))
def test_criteo_lines_read_as_plain_python_reads_them(lines: list[bytes]) -> None:
    verdicts, _, (labels, dense, keys) = run(CRITEO, lines)
    assert verdicts == [GOOD] * len(lines)
    for row, line in enumerate(lines):
        label, values, own = criteo_row(line)
        assert labels[row] == label
        assert keys[row].tolist() == own
        assert np.allclose(dense[row], np.array(values, dtype=np.float32), rtol=1e-6)


GOOD_LINE = b"\t".join([b"1", *[b"5"] * 13, *[b"68fd1e64"] * 26])


@pytest.mark.parametrize(
    ("line", "verdict", "detail"),
    [
        (GOOD_LINE, GOOD, 0),
        (b"", PASSED, 0),
        (b"\r", PASSED, 0),
        (b"\t".join([b"1"] * 17), BAD_COLUMNS, 17),
        (GOOD_LINE + b"\t", BAD_COLUMNS, 41),
        (b"hello, world", BAD_COLUMNS, 1),
        (b"\x00\xff\x80", BAD_COLUMNS, 1),
        (b"2" + GOOD_LINE[1:], BAD_LABEL, 0),
        (GOOD_LINE[1:], BAD_LABEL, 0),
        (GOOD_LINE.replace(b"\t5", b"\tx", 1), BAD_NUMBER, 1),
        (GOOD_LINE.replace(b"\t5", b"\t-", 1), BAD_NUMBER, 1),
        (GOOD_LINE.replace(b"\t5\t68", b"\t1 2\t68"), BAD_NUMBER, 13),
        (GOOD_LINE.replace(b"\t5", b"\t1-2", 1), BAD_NUMBER, 1),
    ],
)
def test_a_bad_line_is_told_from_its_good_neighbours(
    line: bytes, verdict: int, detail: int
) -> None:
    verdicts, details, (labels, _, _) = run(CRITEO, [GOOD_LINE, line, GOOD_LINE])
    assert verdicts == [GOOD, verdict, GOOD]
    assert details == [0, detail, 0]
    assert labels.shape[0] == (3 if verdict == GOOD else 2)


@given(st.binary(max_size=300))
def test_any_bytes_are_judged_without_reading_past_a_line(noise: bytes) -> None:
    lines = [*noise.split(b"\n"), GOOD_LINE]
    verdicts, _, (labels, _, keys) = run(CRITEO, lines)
    assert verdicts[-1] == GOOD and labels[-1] == 1.0
    assert keys[-1].tolist() == criteo_row(GOOD_LINE)[2]


def test_adult_lines_have_blanks_marks_and_full_stops_taken_off() -> None:
    form = "39, %s, 77516, Bachelors, 13, a, b, c, d, Male, 2174, 0, 40, Peru, %s"
    lines = [
        (form % pair).encode()
        for pair in [("State-gov", "<=50K"), ("?", ">50K."), ("?", ">50K"), ("x", "50K")]
    ]
    verdicts, details, (labels, dense, keys) = run(ADULT, [b"|1x3 Cross validator", *lines])
    assert verdicts == [PASSED, GOOD, GOOD, GOOD, BAD_LABEL] and details[-1] == 14
    assert labels.tolist() == [0.0, 1.0, 1.0]
    assert keys[:, 0].tolist() == [text_key(b"State-gov", 0), text_key(b"", 0), text_key(b"", 0)]
    assert keys[0, 7] == text_key(b"Peru", 7)
    want = [math.log1p(value) for value in (39, 77516, 13, 2174, 0, 40)]
    assert np.allclose(dense[0], want, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Kind.COUNT, b"-2", 0.0),
        (Kind.COUNT, b"", 0.0),
        (Kind.COUNT, b"+7", math.log(8)),
        (Kind.SIGNED, b"-1.5", -math.log(2.5)),
        (Kind.SIGNED, b"", 0.0),
        (Kind.RAW, b"-12.25", -12.25),
        (Kind.RAW, b"NA", math.nan),
    ],
)
def test_numbers_become_dense_values_by_their_kind(kind: Kind, text: bytes, value: float) -> None:
    schema = Schema("one", (Column("x", kind),), b"\t", "tab", missing=b"NA")
    verdicts, _, (_, dense, _) = run(schema, [text] if text else [b""])
    if not text:  # a line of one empty value is a blank line
        assert verdicts == [PASSED]
    else:
        assert np.allclose(dense, [[value]], equal_nan=True)


def test_only_the_tail_of_a_value_counts_where_the_schema_says_so() -> None:
    schema = Schema("hour", (Column("hour", Kind.FEATURE, tail=2),), b",", "comma")
    _, _, (_, _, keys) = run(schema, [b"14102123", b"7"])
    assert keys[:, 0].tolist() == [text_key(b"23", 0), text_key(b"7", 0)]
