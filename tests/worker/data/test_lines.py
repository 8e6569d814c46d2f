"""Lines: every byte of a file once, in whole lines with the right numbers, plain or gzip."""

from __future__ import annotations

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import DataError
from worker.data.lines import read_head, read_pieces


@given(
    st.lists(st.text("ab\r", max_size=9).map(str.encode), min_size=1, max_size=20),
    st.integers(1, 30),
    st.booleans(),
    st.booleans(),
)
def test_pieces_are_the_lines_whatever_their_size(
    lines: list[bytes], piece_bytes: int, compressed: bool, ended: bool
) -> None:
    content = b"\n".join(lines) + (b"\n" if ended else b"")
    if not content:
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        path.write_bytes(gzip.compress(content) if compressed else content)
        pieces = list(read_pieces(path, piece_bytes))
    whole = content if content.endswith(b"\n") else content + b"\n"
    assert b"".join(piece.text for piece in pieces) == whole
    line = 1
    for piece in pieces:
        assert piece.first == line and piece.text.endswith(b"\n")
        assert piece.count == len(piece.text.split(b"\n")) - 1
        line += piece.count


def test_gzip_members_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "data.gz"
    path.write_bytes(gzip.compress(b"one\ntw", mtime=0) + gzip.compress(b"o\nthree\n", mtime=0))
    assert b"".join(piece.text for piece in read_pieces(path)) == b"one\ntwo\nthree\n"


def test_a_head_has_the_first_lines_without_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"\n".join([b"", *(b"line %d" % number for number in range(100))]))
    assert read_head(path) == [b"line %d" % number for number in range(20)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.tsv: cannot be read \(No such file"):
        list(read_pieces(tmp_path / "gone.tsv"))


@pytest.mark.parametrize("content", [b"", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"empty\.gz: .* got an empty file"):
        list(read_pieces(path))


def damage(content: bytes) -> dict[str, bytes]:
    """Ways in which a gzip file goes wrong."""
    middle = len(content) // 2
    return {
        "cut off": content[:-20],
        "cut to its head": content[:12],
        "flipped": content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :],
        "wrong checksum": content[:-8] + b"\0" * 8,
        "followed by garbage": content + b"garbage",
    }


@pytest.mark.parametrize("how", damage(b" " * 50))
def test_damaged_gzip_is_named_with_the_last_line_that_was_read(tmp_path: Path, how: str) -> None:
    text = b"".join(b"%d and more\n" % (number * 7919 % 10007) for number in range(5000))
    path = tmp_path / "bad.tsv.gz"
    path.write_bytes(damage(gzip.compress(text))[how])
    read = 0
    with pytest.raises(DataError, match=r"bad\.tsv\.gz: after line \d+: expected gzip") as caught:
        for piece in read_pieces(path, 1000):
            read += piece.count
    assert f"after line {read}:" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_line_ends_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"first\n" + b"x" * (5 << 20))
    with pytest.raises(DataError, match="blob:2: expected lines of at most"):
        list(read_pieces(path, 1 << 19))
