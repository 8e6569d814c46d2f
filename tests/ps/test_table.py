"""Table: what may be declared, what an unseen row is, and that a description says everything."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ps
from ps.table import Table, table_from
from storage.errors import ConfigError

KEYS = np.array([0, 1, 5, 2**63, 2**64 - 1], np.uint64)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"dim": 0}, "dim"),
        ({"dim": 1 << 14}, "dim"),
        ({"rows": 0}, "rows"),
        ({"rows": 2**64 + 1}, "rows"),
        ({"dtype": "float64"}, "float64"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(arguments: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        Table(**{"name": "ads", "dim": 4, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("optimizer", [ps.SGD(lr=0.1), ps.Adam(lr=0.1), ps.FTRL(lr=0.1)])
def test_a_row_is_the_embedding_then_the_state(optimizer: ps.SGD | ps.Adam | ps.FTRL) -> None:
    table = Table("ads", dim=4, optimizer=optimizer, init=ps.Constant(3.0))
    rows = table.fresh(KEYS)
    assert rows.shape == (5, table.width) == (5, 4 + table.state_width)
    assert (rows[:, :4] == 3.0).all()
    assert (rows[:, 4:] == optimizer.initial_state).all()


def test_an_unseen_row_depends_on_seed_table_and_key_alone() -> None:
    table = Table("ads", dim=4, seed=7)
    rows = table.fresh(KEYS)
    assert np.array_equal(table.fresh(KEYS[::-1]), rows[::-1])
    assert np.array_equal(Table("ads", dim=4, seed=7).fresh(KEYS[2:3]), rows[2:3])
    assert not np.array_equal(Table("ads", dim=4, seed=8).fresh(KEYS), rows)
    assert not np.array_equal(Table("users", dim=4, seed=7).fresh(KEYS), rows)


@pytest.mark.parametrize(
    "table",
    [
        Table("ads", dim=4),
        Table("b-1.x", dim=16, optimizer=ps.Adam(lr=0.5, betas=(0.5, 0.75)), rows=2**64, seed=-1),
        Table("c", dim=1, optimizer=ps.FTRL(lr=1.0), init=ps.Normal(0.1), dtype="int8", rows=10),
    ],
)
def test_a_table_is_made_again_from_its_description(table: Table) -> None:
    assert table_from(json.loads(json.dumps(table.describe()))) == table
