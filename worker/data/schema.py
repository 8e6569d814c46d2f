"""Schemas: what the columns of a text format mean, as data; one more format is one more entry.

A schema is recognised by a line of the file: its header, or a line with as many columns whose
label can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """What is made of a column."""

    SKIP = 0
    LABEL = 1
    COUNT = 2  # dense: ln(x + 1), below 0 and missing -> 0 (DLRM's Criteo preprocessing)
    SIGNED = 3  # dense: sign(x) * ln(|x| + 1), missing -> 0
    RAW = 4  # dense: x as it is, missing -> NaN
    FEATURE = 5


DENSE = (Kind.COUNT, Kind.SIGNED, Kind.RAW)
"""The kinds that give a dense value."""


@dataclass(frozen=True)
class Column:
    """A column; of a FEATURE with ``tail`` above 0 only the last ``tail`` bytes are the value."""

    name: str
    kind: Kind
    tail: int = 0


@dataclass(frozen=True)
class Schema:
    """A text format with one example a line and no quoting.

    separator: one byte; blanks around a value are left out when it is a comma. header: the first
    line, or b"" where there is none. comment: a line that starts with this byte is passed over.
    missing: the text of a value that is not there, beside the empty one. positive, negative: the
    label's texts. form: the separator in words.
    """

    name: str
    columns: tuple[Column, ...]
    separator: bytes
    form: str
    header: bytes = b""
    comment: bytes = b""
    missing: bytes = b""
    positive: tuple[bytes, ...] = (b"1",)
    negative: tuple[bytes, ...] = (b"0",)

    @property
    def dense_names(self) -> tuple[str, ...]:
        """The names of the dense columns, in order."""
        return tuple(column.name for column in self.columns if column.kind in DENSE)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the features, in order."""
        return tuple(column.name for column in self.columns if column.kind == Kind.FEATURE)

    def describe(self) -> str:
        """What a line has to look like, in a few words."""
        return f"{len(self.columns)} {self.form}-separated columns"

    def matches(self, line: bytes) -> bool:
        """Whether ``line`` (without its end) is the header or reads as an example of this form."""
        if self.header:
            return line == self.header
        values = line.split(self.separator)
        if len(values) != len(self.columns):
            return False
        labels = self.positive + self.negative
        return any(
            column.kind == Kind.LABEL and value.strip(b" ") in labels
            for column, value in zip(self.columns, values, strict=True)
        )


def _columns(kind: Kind, names: str) -> tuple[Column, ...]:
    return tuple(Column(name, kind) for name in names.split())


CRITEO = Schema(
    "criteo",
    (
        Column("label", Kind.LABEL),
        *(Column(f"I{number}", Kind.COUNT) for number in range(1, 14)),
        *(Column(f"C{number}", Kind.FEATURE) for number in range(1, 27)),
    ),
    separator=b"\t",
    form="tab",
)
"""Criteo's display advertising logs (Kaggle 2014 and Terabyte): the two have one form."""

_AVAZU_COLUMNS = (
    "C1 banner_pos site_id site_domain site_category app_id app_domain app_category device_id "
    "device_ip device_model device_type device_conn_type C14 C15 C16 C17 C18 C19 C20 C21"
)

AVAZU = Schema(
    "avazu",
    (
        Column("id", Kind.SKIP),
        Column("click", Kind.LABEL),
        Column("hour", Kind.FEATURE, tail=2),  # YYMMDDHH: the hour of the day comes back
        *_columns(Kind.FEATURE, _AVAZU_COLUMNS),
    ),
    separator=b",",
    form="comma",
    header=f"id,click,hour,{_AVAZU_COLUMNS.replace(' ', ',')}".encode(),
)
"""Avazu's click log (Kaggle 2014)."""

ADULT = Schema(
    "adult",
    (
        Column("age", Kind.SIGNED),
        Column("workclass", Kind.FEATURE),
        Column("fnlwgt", Kind.SIGNED),
        Column("education", Kind.FEATURE),
        Column("education-num", Kind.SIGNED),
        *_columns(Kind.FEATURE, "marital-status occupation relationship race sex"),
        *_columns(Kind.SIGNED, "capital-gain capital-loss hours-per-week"),
        Column("native-country", Kind.FEATURE),
        Column("income", Kind.LABEL),
    ),
    separator=b",",
    form="comma",
    comment=b"|",
    missing=b"?",
    positive=(b">50K", b">50K."),
    negative=(b"<=50K", b"<=50K."),
)
"""UCI's census income table; its test file has a comment first and a full stop after labels."""

SCHEMAS = (CRITEO, AVAZU, ADULT)
"""The text formats that are recognised by their lines."""


def detect(lines: list[bytes]) -> Schema | None:
    """The schema that the first readable of some lines has, or None.

    lines: the head of a file, without line ends. A head in which nothing is readable but tabs are
    counts as Criteo, so that the error which follows speaks of its columns.
    """
    for line in lines:
        for schema in SCHEMAS:
            if schema.matches(line):
                return schema
    return CRITEO if any(CRITEO.separator in line for line in lines) else None
