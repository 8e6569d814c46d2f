"""Which columns do for which."""

from __future__ import annotations

import pytest

import ps
from ps.column import ANY, Column, bare_columns, whole_columns

ADS = ps.Table("ads", dim=4, optimizer=ps.Adam())


def test_a_whole_file_has_all_of_a_row() -> None:
    widths = {name: column.shape for name, column in whole_columns(ADS).items()}
    assert widths == {"keys": (), "embeddings": (4,), "state": (8,), "steps": ()}


def test_rows_without_state_have_no_column_of_it() -> None:
    assert "state" not in whole_columns(ps.Table("ads", dim=4, optimizer=ps.SGD()))


@pytest.mark.parametrize(
    ("found", "whole", "bare"),
    [
        (Column(("float32",), (4,)), True, True),
        (Column(("float32",), (ANY,)), True, True),
        (Column(("float64",), (4,)), False, True),
        (Column(("float32",), (5,)), False, False),
        (Column(("float32",)), False, False),
        (Column(("float32",), (4, 1)), False, False),
        (Column(("string",), (4,)), False, False),
    ],
)
def test_only_fitting_numbers_are_taken_for_embeddings(
    found: Column, whole: bool, bare: bool
) -> None:
    assert whole_columns(ADS)["embeddings"].takes(found) == whole
    assert bare_columns(ADS)["embeddings"].takes(found) == bare


def test_a_list_is_no_key() -> None:
    assert not bare_columns(ADS)["keys"].takes(Column(("int64",), (ANY,)))
