"""Budgets refuse before memory is taken; sizes are read as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.budget import Budget, parse_size, show_size
from storage.errors import ConfigError

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16MiB", 2**24), ("1.5 GB", 1_500_000_000), ("2g", 2**31), (4096, 4096), ("4096", 4096),
        (" .5 KiB ", 512), ("1.TB", 10**12), (2**60 + 1, 2**60 + 1), ("7b", 7),
    ],
)  # fmt: skip
def test_sizes_are_read_exactly(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "12 apples", "-5", "0", "1e9", "nan", "0.1", "8 GiBs"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--ram: expected") as error:
        parse_size(text, "--ram")
    assert repr(text) in str(error.value) and "\n" not in str(error.value)


@given(st.integers(0, 2**49))
def test_a_shown_size_is_right_to_one_in_a_hundred(size: int) -> None:
    number, unit = show_size(size).split()
    assert float(number) < 1024
    assert abs(float(number) * UNITS[unit] - size) <= size / 100


def test_a_part_holds_what_it_said_last() -> None:
    budget = Budget(100, "--ram")
    budget.hold("cache", 60)
    budget.hold("index", 40)
    budget.hold("cache", 10)
    assert (budget.used, budget.free, budget.peak) == (50, 50, 100)


def test_too_much_is_refused_and_changes_nothing() -> None:
    budget = Budget(100, "--ram of table 'ads'")
    budget.hold("cache", 60)
    with pytest.raises(ConfigError, match=r"--ram of table 'ads'.*index.*at least 101 bytes"):
        budget.hold("index", 41)
    assert budget.parts == {"cache": 60} and budget.peak == 60
