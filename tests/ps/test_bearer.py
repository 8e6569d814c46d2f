"""Token files: what is in them, who may read them, and that nothing else shows a token."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest

from ps.bearer import Tokens
from storage.errors import ConfigError
from tests.ps.securing import GOOD, OTHER, WRONG, write_token


def tokens_of(path: Path) -> Tokens:
    return Tokens(path, report=pytest.fail)


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_comments_and_empty_lines_are_left_out(tmp_path: Path) -> None:
    text = f"# first\n\n  {GOOD}  \r\n# second\n{OTHER}"
    tokens = tokens_of(written(tmp_path / "t", text.encode()))
    assert tokens.first() == GOOD
    assert tokens.admits(GOOD) and tokens.admits(OTHER)


@pytest.mark.parametrize(
    "token", ["", WRONG, GOOD[:-1], GOOD + "x", f"{GOOD}\n{OTHER}", "ключ", "\ud800"]
)
def test_nothing_else_is_admitted(token: str, tmp_path: Path) -> None:
    assert not tokens_of(write_token(tmp_path / "t", GOOD, OTHER)).admits(token)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n# only a comment\n", b"fifteen-letters\n", b"a" * 16 + b" " + b"b" * 16,
        f"{GOOD}\n{OTHER}\n{WRONG}\n".encode(), b"\xff\xfe" + b"a" * 20, "ä".encode() * 20,
        f"{GOOD}\nshort\n".encode(), b"\0" * 20,
    ],
)  # fmt: skip
def test_what_are_no_tokens_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "t", content)
    with pytest.raises(ConfigError, match=f"token file {path}: expected") as caught:
        tokens_of(path)
    assert "\n" not in str(caught.value)
    assert GOOD not in "".join(traceback.format_exception(caught.value))


def test_sixteen_letters_are_enough(tmp_path: Path) -> None:
    assert tokens_of(write_token(tmp_path / "t", "a" * 16)).admits("a" * 16)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644])
def test_a_file_that_others_may_use_is_refused(mode: int, tmp_path: Path) -> None:
    path = written(tmp_path / "t", f"{GOOD}\n".encode(), mode)
    with pytest.raises(ConfigError, match=f"got mode {mode:04o}; run: chmod 600 {path}"):
        tokens_of(path)


def test_a_link_is_as_open_as_what_it_leads_to(tmp_path: Path) -> None:
    target = written(tmp_path / "t", f"{GOOD}\n".encode(), 0o644)
    os.symlink(target, tmp_path / "link")
    with pytest.raises(ConfigError, match="chmod 600"):
        tokens_of(tmp_path / "link")


@pytest.mark.parametrize("name", ["absent", ""])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file with a token, got"):
        tokens_of(tmp_path / name)


def test_a_change_to_what_is_refused_leaves_the_tokens_from_before(tmp_path: Path) -> None:
    reports: list[str] = []
    path = write_token(tmp_path / "t", GOOD)
    tokens = Tokens(path, report=reports.append)
    written(path, f"{OTHER}\n{OTHER}\n".encode(), 0o644)
    assert tokens.admits(GOOD) and not tokens.admits(OTHER)
    assert len(reports) == 1 and "chmod 600" in reports[0] and OTHER not in reports[0]
    path.chmod(0o600)
    assert write_token(path, OTHER) and tokens.admits(OTHER) and not tokens.admits(GOOD)


def test_a_mode_that_is_mended_is_noticed(tmp_path: Path) -> None:
    reports: list[str] = []
    path = write_token(tmp_path / "t", GOOD)
    tokens = Tokens(path, report=reports.append)
    written(path, f"{OTHER}\n".encode() * 2, 0o644)
    assert not tokens.admits(OTHER)
    path.chmod(0o600)
    assert tokens.admits(OTHER)


def test_no_token_is_shown(tmp_path: Path) -> None:
    tokens = tokens_of(write_token(tmp_path / "t", GOOD))
    assert GOOD not in f"{tokens!r} {tokens}" and str(tmp_path / "t") in repr(tokens)
