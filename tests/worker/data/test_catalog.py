"""The catalog: what a user may write as data, and what he is told when it is something else."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from storage.errors import ConfigError, DataError
from worker.data import open_dataset

from .oracle import line, numbers_of, rows_of


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A Criteo log of ten rows, named as if it had commas."""
    path = tmp_path / "log.csv"
    path.write_bytes(b"".join(line(number) + b"\n" for number in range(10)))
    return path


def test_a_file_is_recognised_and_its_last_tenth_held_out(log: Path) -> None:
    data = open_dataset(str(log))
    assert len(data.dense_names) == 13 and len(data.feature_names) == 26
    assert numbers_of(rows_of(list(data.train(4)))) == list(range(9))
    assert numbers_of(rows_of(list(data.test(4)))) == [9]


def test_another_path_can_be_the_test_part(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tsv.gz"
    other.write_bytes(gzip.compress(line(20) + b"\n" + line(21)))
    data = open_dataset(str(log), test=str(other))
    assert numbers_of(rows_of(list(data.train(4)))) == list(range(10))
    assert numbers_of(rows_of(list(data.test(4)))) == [20, 21]


def test_bad_lines_stop_or_are_counted(log: Path) -> None:
    log.write_bytes(b"cut\toff\n" + log.read_bytes())
    with pytest.raises(DataError, match=r"log\.csv:1: expected 40 tab-separated columns"):
        list(open_dataset(str(log)).train(4))
    data = open_dataset(str(log), bad_lines="skip")
    assert len(rows_of(list(data.train(4)))) == 9
    assert len(rows_of(list(data.test(4)))) == 1
    assert data.bad_lines == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("flight", "'flight' is not understood"),
        ("synthetics:rows=5", "'synthetics:rows=5' is not understood"),
        ("synthetic:row=5", "'row=5'"),
        ("", "'' is not understood"),
    ],
)
def test_a_misspelt_kind_is_answered_with_those_there_are(spec: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_dataset(spec)
    assert words in str(caught.value) and "rows" in str(caught.value)


def test_options_that_cannot_be_meant_are_refused(log: Path) -> None:
    with pytest.raises(ConfigError, match=r"holdout must be a share .* got 1\.0"):
        open_dataset(str(log), holdout=1.0)
    with pytest.raises(ConfigError, match="bad_lines must be 'stop' or 'skip', got 'drop'"):
        open_dataset(str(log), bad_lines="drop")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="synthetic has held-out examples of its own"):
        open_dataset("synthetic:", test=str(log))


def test_a_missing_file_is_named(log: Path) -> None:
    for spec in ("gone.tsv", "some/folder"):
        with pytest.raises(DataError, match=rf"{spec}: expected a file or folder, got nothing"):
            open_dataset(spec)
    with pytest.raises(DataError, match=r"gone\.tsv"):
        open_dataset(str(log), test="gone.tsv")


@pytest.mark.parametrize("content", [b"", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_named(log: Path, content: bytes) -> None:
    (log.parent / "log2.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"log2\.csv: expected lines of examples, got an empty"):
        list(open_dataset(str(log.parent)).train(4))
    with pytest.raises(DataError, match=r"log2\.csv: expected lines of examples, got an empty"):
        open_dataset(str(log.parent / "log2.csv"))


def test_an_unknown_format_is_answered_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Hello,\nworld.\n")
    with pytest.raises(DataError) as caught:
        open_dataset(str(path))
    assert f"{path}:1: expected criteo with 40 tab-separated columns" in str(caught.value)
    assert "got 'Hello,'" in str(caught.value)


def test_a_damaged_gzip_is_named(log: Path) -> None:
    path = log.with_suffix(".csv.gz")
    path.write_bytes(gzip.compress(log.read_bytes())[:-9])
    with pytest.raises(DataError, match=r"log\.csv\.gz: after line \d+: expected gzip data"):
        list(open_dataset(str(path)).train(4))


def test_text_and_parquet_are_kept_apart(log: Path) -> None:
    (log.parent / "a.parquet").write_bytes(b"PAR1....PAR1")
    with pytest.raises(DataError, match=r"log\.csv: expected the same format as .*a\.parquet"):
        open_dataset(str(log.parent))


@pytest.mark.parametrize(
    ("folder", "train", "test"),
    # avazu's test file has no header: 431 rows after the first, and that one.
    [("criteo_kaggle", 7200, 391), ("avazu", 8087, 432), ("adult", 32_561, 16_281)],
)
def test_real_folders_have_the_examples_that_were_published(
    shared_data: Path, folder: str, train: int, test: int
) -> None:
    data = open_dataset(str(shared_data / folder))
    assert sum(batch.size for batch in data.train(1024)) == train
    assert sum(batch.size for batch in data.test(1024)) == test
    assert data.train_examples == train and data.bad_lines == 0
