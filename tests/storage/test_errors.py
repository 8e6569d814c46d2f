"""The tree of errors is the one that is drawn."""

from __future__ import annotations

import inspect
import re

import pytest

from storage import errors
from storage.errors import TerraceError, WorkingSetError

ALL = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception)
}


def test_every_error_is_drawn_in_the_docstring_and_nothing_else_is() -> None:
    drawn = set(re.findall(r"\w+Error\b", errors.__doc__ or "")) - {"ValueError"}
    assert drawn == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_one_root_catches_every_error(name: str) -> None:
    assert issubclass(ALL[name], TerraceError)


@pytest.mark.parametrize("name", ALL)
def test_an_error_stands_below_the_one_it_is_drawn_below(name: str) -> None:
    lines = (errors.__doc__ or "").splitlines()
    depth = {m[0]: len(line[: m.start()]) for line in lines if (m := re.search(r"\w+Error", line))}
    names = list(depth)
    above = [n for n in names[: names.index(name)] if depth[n] < depth[name]]
    assert not above or issubclass(ALL[name], ALL[above[-1]])


@pytest.mark.parametrize("name", ["ConfigError", "DataError"])
def test_bad_arguments_and_data_are_value_errors_too(name: str) -> None:
    assert issubclass(ALL[name], ValueError)


def test_a_working_set_error_says_how_many_bytes_would_do() -> None:
    error = WorkingSetError("too small", needed_bytes=5)
    assert (str(error), error.needed_bytes) == ("too small", 5)
