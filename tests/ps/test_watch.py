"""Watch: the value of the files as they are, and the last good one when they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ps.watch import Watch
from storage.errors import ConfigError


class Numbers:
    """Reads a number from a file and counts how often."""

    def __init__(self, path: Path) -> None:
        self.path, self.reads = path, 0
        self.reports: list[str] = []

    def read(self) -> int:
        self.reads += 1
        try:
            return int(self.path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path}: no number") from error

    def watch(self) -> Watch[int]:
        return Watch([self.path], self.read, self.reports.append)


@pytest.fixture
def numbers(tmp_path: Path) -> Numbers:
    (tmp_path / "n").write_text("1")
    return Numbers(tmp_path / "n")


def test_a_file_is_read_again_only_when_it_changed(numbers: Numbers) -> None:
    watch = numbers.watch()
    assert [watch.value(), watch.value(), numbers.reads] == [1, 1, 1]
    numbers.path.write_text("22")
    assert [watch.value(), watch.value(), numbers.reads] == [22, 22, 2]


def test_a_file_renamed_into_its_place_with_the_same_time_is_another(
    numbers: Numbers,
) -> None:
    watch, before = numbers.watch(), numbers.path.stat()
    beside = numbers.path.with_name("new")
    beside.write_text("2")
    os.utime(beside, ns=(before.st_atime_ns, before.st_mtime_ns))
    beside.replace(numbers.path)
    assert watch.value() == 2


def test_a_change_that_cannot_be_read_is_reported_once(numbers: Numbers) -> None:
    watch = numbers.watch()
    numbers.path.write_text("")
    assert [watch.value(), watch.value()] == [1, 1]
    assert numbers.reports == [f"{numbers.path}: no number; what was read before stays in use"]
    numbers.path.unlink()
    assert watch.value() == 1 and len(numbers.reports) == 2
    numbers.path.write_text("3")
    assert watch.value() == 3 and len(numbers.reports) == 2


def test_a_file_that_changes_while_it_is_read_is_read_again(numbers: Numbers) -> None:
    def read() -> int:
        found = numbers.read()
        if found == 1:
            numbers.path.write_text("22")
        return found

    watch = Watch([numbers.path], read, numbers.reports.append)
    assert watch.value() == 22


def test_the_first_value_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no number"):
        Numbers(tmp_path / "absent").watch()
