"""Requests: every block of every request, in order; a line that is none is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import DataError
from worker.data.traces.lis import is_lis, read_lis

requests = st.tuples(st.integers(0, 10**17), st.integers(1, 300))


@given(st.lists(requests, min_size=1))
def test_a_request_is_its_blocks(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "t.lis"
    lines = [f"{first} {blocks} 0 {i}" for i, (first, blocks) in enumerate(asked)]
    path.write_text("\r\n".join(lines) + "\n\n")
    assert is_lis(lines[:20])
    keys = [key for piece in read_lis(path) for key in piece.keys.tolist()]
    assert keys == [first + i for first, blocks in asked for i in range(blocks)]


def test_a_request_of_millions_of_blocks_comes_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("5 3000000 0 0\n7 2 0 1\n")
    pieces = [piece.keys for piece in read_lis(tmp_path / "t")]
    assert max(map(len, pieces)) <= 1 << 20
    assert sum(map(len, pieces)) == 3_000_002
    assert pieces[-1][-4:].tolist() == [3_000_003, 3_000_004, 7, 8]


@pytest.mark.parametrize(
    "line", ["1 0 0 1", "1 1 0", "1 1 0 2 3", "1 x 0 2", "-1 1 0 0", "1 9999999999 0 0"]
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "t").write_text(f"1 1 0 0\n\n{line}\n")
    with pytest.raises(DataError, match=r"t:3: expected first block, .* got '") as caught:
        list(read_lis(tmp_path / "t"))
    assert repr(line) in str(caught.value)


@pytest.mark.parametrize("line", ["1 1 0", "1 0 0 1", "a 1 0 1", "1\t1\t0\t1"])
def test_other_lines_are_not_taken_for_requests(line: str) -> None:
    assert not is_lis(["1 1 0 0", line])
