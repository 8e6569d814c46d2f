"""Column: a trace in a column of text, one access a line; a file of one word a line is one column.

A key is the integer (modulo 2**64, so -1 is 2**64 - 1) where the first lines have integers, else
the word's hash by `worker.data.hash` (feature 0). Blank lines are passed over. A value may stand in
double quotes, which may hide separators but no line end.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError, DataError
from storage.keys import Keys
from worker.data.hash import value_key
from worker.data.lines import Piece as Lines
from worker.data.lines import read_pieces
from worker.data.traces.piece import Piece

KEY_NAMES: Final = (
    "obj_id", "object_id", "objid", "obj", "key", "cache_key", "item_id", "item", "lbn", "lba",
    "block", "address", "id",
)  # fmt: skip
"""Names of a header that say "this is the key", the first that is there."""

_SEPARATORS = ",;\t| "
_NONE = -1
_SHOWN = 40
_SHORT, _EMPTY, _NO_INTEGER, _CONTROL, _WORDS = 1, 2, 3, 4, 5
_TAB, _RETURN, _END, _BLANK, _QUOTE, _MINUS, _ZERO, _DELETE = 9, 13, 10, 32, 34, 45, 48, 127
_10, _MOST = np.uint64(10), np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Form:
    """How to read a file. separator: between columns, "" where there is one. number: of the key's
    column, from 0. name: of that column. integers: else words. header: the first line is names.
    """

    separator: str
    number: int
    name: str
    integers: bool
    header: bool

    def describe(self) -> str:
        """The format in words."""
        kind = "integers" if self.integers else "words"
        if not self.separator:
            return f"text, {kind}"
        return f"csv, {kind} of column {self.name}"


def form_of(
    path: Path,
    head: list[str],
    column: str | None = None,
    *,
    plain: bool = False,
    words: bool = False,
) -> Form:
    """The form of a file whose first lines are ``head`` (at least one, none blank).

    column: name or number from 1 of the key's column; None: by `KEY_NAMES`, else the last. plain:
    one key a line, whatever is in it. words: keys are words, even if they look like integers.

    Raises: ConfigError for a column that is not there.
    """
    separator = "" if plain else _separator(head)
    rows = [_split(line, separator) for line in head]
    names = rows[0] if separator and _is_header(rows) else []
    number = _choose(path, column, names, len(rows[0]))
    values = [row[number] for row in rows[1 if names else 0 :] if number < len(row)]
    integers = not words and bool(values) and all(map(_is_integer, values))
    shown = f"{names[number]!r} ({number + 1})" if names else str(number + 1)
    return Form(separator, number, shown, integers, bool(names))


def read_column(path: Path, form: Form) -> Iterator[Piece]:
    """The pieces of a file. Raises: DataError naming the line that has no key."""
    separator = ord(form.separator) if form.separator else _NONE
    for lines in read_pieces(path):
        text = np.frombuffer(lines.text, np.uint8)
        start = lines.text.index(b"\n") + 1 if form.header and lines.first == 1 else 0
        keys = np.empty(lines.count, np.uint64)
        count, bad, why = _pick(text, start, separator, form.number, form.integers, keys)
        if why:
            raise DataError(_complain(path, lines, form, int(bad), int(why)))
        yield Piece(keys[:count])


def _separator(head: list[str]) -> str:
    """The separator by which all lines have the same number of columns, 2 or more."""
    for separator in _SEPARATORS:
        widths = {len(_split(line, separator)) for line in head}
        if len(widths) == 1 and widths != {1}:
            return separator
    return ""


def _split(line: str, separator: str) -> list[str]:
    if not separator:
        return [line.strip()]
    return [value.strip() for value in next(csv.reader([line], delimiter=separator))]


def _is_header(rows: list[list[str]]) -> bool:
    """Names and no numbers, and either one that we know or numbers in the line below."""
    names = rows[0]
    if any(_is_number(name) or not name for name in names) or len(set(names)) < len(names):
        return False
    known = any(name.lower() in KEY_NAMES for name in names)
    return known or (len(rows) > 1 and any(map(_is_number, rows[1])))


def _choose(path: Path, column: str | None, names: list[str], width: int) -> int:
    """The number of the key's column, from 0."""
    if column is None:
        lower = [name.lower() for name in names]
        return next((lower.index(name) for name in KEY_NAMES if name in lower), width - 1)
    if column in names:
        return names.index(column)
    if column.isdecimal() and 1 <= int(column) <= width:
        return int(column) - 1
    there = f"{', '.join(names)}, or " if names else ""
    raise ConfigError(f"{path}: column: expected {there}1 to {width}, got {column!r}")


def _is_integer(value: str) -> bool:
    return value.removeprefix("-").isdecimal() and value.isascii()


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _complain(path: Path, lines: Lines, form: Form, start: int, why: int) -> str:
    line = lines.text[start : lines.text.index(b"\n", start)]
    number = lines.first + lines.text.count(b"\n", 0, start)
    shown = line[:_SHOWN].decode("utf-8", "replace").strip()
    wish: str = {
        _SHORT: f"at least {form.number + 1} columns",
        _EMPTY: f"a key in column {form.name}",
        _NO_INTEGER: "an integer of 64 bits" + (f" in column {form.name}" * bool(form.separator)),
        _CONTROL: "text",
        _WORDS: "one key a line",
    }[why]
    hint = "; mend the line" if why != _NO_INTEGER else "; are keys words? then give format 'words'"
    return f"{path}:{number}: expected {wish}, got {shown!r}{hint}"


@nb.njit(nogil=True, cache=True)
def _pick(
    text: NDArray[np.uint8], start: int, separator: int, number: int, integers: bool, keys: Keys
) -> Any:
    """Write the keys of all lines from ``start``: their count, and where and why one has none."""
    count = 0
    while start < text.shape[0]:
        stop = start
        blank = True
        while text[stop] != _END:
            blank &= text[stop] == _BLANK or text[stop] == _TAB or text[stop] == _RETURN
            stop += 1
        if not blank:
            first, last = _field(text, start, stop, separator, number)
            if first < 0:
                return count, start, _SHORT
            key, why = _key(text, first, last, integers, separator == _NONE)
            if why:
                return count, start, why
            keys[count] = key
            count += 1
        start = stop + 1
    return count, start, 0


@nb.njit(nogil=True, cache=True)
def _field(text: NDArray[np.uint8], start: int, stop: int, separator: int, number: int) -> Any:
    """Where a line's value begins and ends, without blanks and quotes around; -1 for none."""
    quoted = False
    for i in range(start, stop + 1):
        if i < stop and text[i] == _QUOTE and separator != _NONE:
            quoted = not quoted
        if i == stop or (text[i] == separator and not quoted):
            if number == 0:
                first, last = start, i
                while first < last and text[first] in (_BLANK, _TAB, _RETURN):
                    first += 1
                while first < last and text[last - 1] in (_BLANK, _TAB, _RETURN):
                    last -= 1
                if (
                    separator != _NONE
                    and last - first >= 2
                    and text[first] == _QUOTE
                    and text[last - 1] == _QUOTE
                ):
                    first, last = first + 1, last - 1
                return first, last
            number -= 1
            start = i + 1
    return -1, -1


@nb.njit(nogil=True, cache=True)
def _key(text: NDArray[np.uint8], first: int, last: int, integer: bool, alone: bool) -> Any:
    """The key of a value (uint64), and why it has none, or 0."""
    none = np.uint64(0)
    if first == last:
        return none, _EMPTY
    if not integer:
        for i in range(first, last):
            if text[i] < _BLANK or text[i] == _DELETE:
                return none, _CONTROL
            if alone and text[i] == _BLANK:
                return none, _WORDS
        return value_key(text, first, last, 0), 0
    negative = text[first] == _MINUS
    value = none
    if negative and last - first == 1:
        return none, _NO_INTEGER
    for i in range(first + negative, last):
        digit = np.uint64(text[i]) - np.uint64(_ZERO)
        if digit > np.uint64(9) or value > (_MOST - digit) // _10:
            return none, _NO_INTEGER
        value = value * _10 + digit
    if negative:
        if value > np.uint64(2**63):
            return none, _NO_INTEGER
        value = np.uint64(0) - value
    return value, 0
