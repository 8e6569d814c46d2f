"""Admission: what may be declared, and that a description says everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ps
from ps.admission import ADMISSIONS, Admission, admission_from
from ps.directory import StoreDirectory
from ps.table import Table, table_from
from storage.errors import ConfigError, MismatchError

KINDS = [
    ps.CountMin(2),
    ps.CountMin(255, bytes=1 << 16, decay=1000),
    ps.ExactCount(3, decay=1),
    ps.Probability(0.25),
]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ps.CountMin(0), "times=0"),
        (lambda: ps.CountMin(256), "times=256"),
        (lambda: ps.CountMin(2.0), "times=2.0"),  # type: ignore[arg-type]
        (lambda: ps.CountMin(True), "times=True"),
        (lambda: ps.CountMin(2, bytes=65535), "bytes=65535"),
        (lambda: ps.CountMin(2, decay=0), "decay=0"),
        (lambda: ps.ExactCount(0), "times=0"),
        (lambda: ps.ExactCount(2, bytes=9215), "bytes=9215"),
        (lambda: ps.Probability(0.0), "probability=0.0"),
        (lambda: ps.Probability(1.5), "probability=1.5"),
        (lambda: ps.Probability(float("nan")), "probability=nan"),
        (lambda: admission_from({"kind": "luck"}), "'luck'"),
        (lambda: admission_from({"kind": "exact", "times": 2}), "bytes"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(make: object, named: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=named) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("admission", KINDS, ids=repr)
def test_one_is_made_again_from_its_description(admission: Admission) -> None:
    assert ADMISSIONS[admission.kind] is type(admission)
    assert admission_from(json.loads(json.dumps(admission.describe()))) == admission
    table = Table("ads", dim=4, admission=admission)
    assert table_from(json.loads(json.dumps(table.describe()))) == table


def test_a_table_without_one_is_described_as_before() -> None:
    assert "admission" not in Table("ads", dim=4).describe()


@pytest.mark.parametrize("made", [None, *KINDS], ids=repr)
@pytest.mark.parametrize("given", [None, *KINDS], ids=repr)
def test_a_store_keeps_what_it_was_made_with(
    tmp_path: Path, made: Admission | None, given: Admission | None
) -> None:
    StoreDirectory(tmp_path, [Table("ads", dim=4, admission=made)]).close()
    tables = [Table("ads", dim=4, admission=given)]
    if made == given:
        directory = StoreDirectory(tmp_path, tables)
        assert directory.tables == tuple(tables)
        directory.close()
        return
    with pytest.raises(MismatchError, match="made with admission") as caught:
        StoreDirectory(tmp_path, tables)
    assert "\n" not in str(caught.value)
