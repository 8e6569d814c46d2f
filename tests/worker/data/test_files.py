"""Files: which are read, in which order, and which of their rows are held out."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import DataError
from worker.data.files import FileDataset, Parts, list_files, split
from worker.data.schema import CRITEO
from worker.data.text import TextReader

from .oracle import line, numbers_of, rows_of


def write(folder: Path, sizes: dict[str, int]) -> None:
    """Files of so many lines each, numbered through in the order given."""
    number = 0
    for name, size in sizes.items():
        rows = [line(each) for each in range(number, number + size)]
        (folder / name).write_bytes(b"".join(row + b"\n" for row in rows))
        number += size


def test_a_folder_is_read_in_name_order_without_what_lies_beside_the_data(tmp_path: Path) -> None:
    names = ["b.tsv", "a10.csv.gz", "a2.txt", "README.md", "LICENSE", "_SUCCESS", ".hidden"]
    for name in [*names, "SHA256SUMS", "readme.txt"]:
        (tmp_path / name).touch()
    (tmp_path / "inner").mkdir()
    assert [file.name for file in list_files(tmp_path)] == ["a10.csv.gz", "a2.txt", "b.tsv"]
    assert list_files(tmp_path / "b.tsv") == (tmp_path / "b.tsv",)


def test_a_missing_path_and_a_folder_without_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: expected a file or folder, got nothing"):
        list_files(tmp_path / "gone")
    (tmp_path / "README.md").touch()
    with pytest.raises(DataError, match="expected a folder with data files, got none"):
        list_files(tmp_path)


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        ("dev.csv test.csv train.csv", "train.csv", "test.csv"),
        ("dev.csv train_1 train_2", "train_1 train_2", "dev.csv"),
        ("adult.data.gz adult.test.gz", "adult.data.gz", "adult.test.gz"),
        ("day_0 day_1", "day_0 day_1", ""),
        ("latest.csv contest.csv", "latest.csv contest.csv", ""),
        ("other train", "train", ""),
        ("test.csv", "test.csv", ""),
    ],
)
def test_names_tell_the_parts(names: str, train: str, test: str) -> None:
    def paths(text: str) -> tuple[Path, ...]:
        return tuple(map(Path, text.split()))

    assert split(paths(names)) == Parts(paths(train), paths(test))


def open_files(folder: Path, holdout: float) -> FileDataset:
    return FileDataset("log", TextReader(CRITEO), split(list_files(folder)), holdout=holdout)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.1, 0.25, 0.9]),
    st.integers(1, 7),
    st.integers(0, 12),
)
@settings(max_examples=50)
def test_the_last_rows_in_order_are_held_out_and_training_starts_anywhere(
    sizes: list[int], holdout: float, batch_size: int, start: int
) -> None:
    with TemporaryDirectory() as folder:
        write(Path(folder), {f"part{number}": size for number, size in enumerate(sizes)})
        total = sum(sizes)
        kept = total - int(total * holdout)
        data = open_files(Path(folder), holdout)
        for _ in range(2):  # the second pass knows how many rows each file has
            train = numbers_of(rows_of(list(data.train(batch_size, start=start))))
            assert train == list(range(kept))[start * batch_size :]
            assert numbers_of(rows_of(list(data.test(batch_size)))) == list(range(kept, total))
        assert len(rows_of(list(data.train(batch_size)))) == data.train_examples == kept


def test_named_parts_leave_all_training_rows_to_train_on(tmp_path: Path) -> None:
    write(tmp_path, {"train_a": 5, "train_b": 4, "test": 3})
    data = open_files(tmp_path, 0.5)
    assert data.train_examples is None  # nothing is read to count them
    assert numbers_of(rows_of(list(data.train(2)))) == list(range(9))
    assert numbers_of(rows_of(list(data.test(2)))) == [9, 10, 11]
    assert data.train_examples == 9
