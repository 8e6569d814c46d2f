"""Stack: budgets are kept, too small ones name one that does, and shares are fair."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ps
from ps.stack import divide
from ps.table import Table
from storage.errors import ConfigError


@pytest.mark.parametrize("policy", ["lru"])
@pytest.mark.parametrize(("ram", "hbm"), [("600KiB", None), ("3MiB", None), ("1MiB", "32KiB")])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_no_budget_is_ever_exceeded(
    tmp_path: Path, policy: str, ram: str, hbm: str | None, dtype: str
) -> None:
    table = Table("ads", dim=8, optimizer=ps.Adagrad(lr=0.1), dtype=dtype)
    rng = np.random.default_rng(0)
    with ps.open(tmp_path, [table], ram=ram, hbm=hbm, policy=policy) as store:
        for _ in range(12):
            keys = rng.integers(0, 20_000, 1500)
            store.write("ads", keys, rng.normal(size=(1500, 8)))
            budget = store.stacks["ads"].budget
            assert 0 < budget.used <= budget.peak <= budget.total
            if hbm is not None:
                top = store.stacks["ads"].top
                assert top.limit * 4 * table.width <= 32 << 10
        assert store.check() == []
        figures = store.stats()["tables"]["ads"]["ram_bytes"]
        parts = [v for k, v in figures.items() if k not in ("total", "peak")]
        assert sum(parts) <= figures["total"]


@pytest.mark.parametrize("dim", [1, 64, 1024])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_too_little_ram_names_an_amount_that_does(tmp_path: Path, dim: int, dtype: str) -> None:
    tables = [Table("ads", dim=dim, dtype=dtype), Table("users", dim=dim)]
    with pytest.raises(ConfigError, match="--ram") as caught:
        ps.open(tmp_path, tables, ram=4096)
    each = re.search(r"at least ([\d.]+ \w+)", str(caught.value))
    assert each is not None
    assert "\n" not in str(caught.value)
    size, unit = each[1].split()
    with ps.open(tmp_path, tables, ram=f"{2 * float(size)}{unit}") as store:
        assert len(store.read("ads", np.arange(16))) == 16


def test_too_little_hbm_names_an_amount_that_does(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--hbm") as caught:
        ps.open(tmp_path, [Table("ads", dim=64)], ram="4MiB", hbm=64)
    each = re.search(r"at least ([\d.]+ \w+)", str(caught.value))
    assert each is not None
    ps.open(tmp_path, [Table("ads", dim=64)], ram="4MiB", hbm=each[1]).close()


def test_a_refused_budget_leaves_no_store_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        ps.open(tmp_path, [Table("ads", dim=64)], ram=4096)
    ps.open(tmp_path, [Table("ads", dim=8)], ram="2MiB").close()


def test_a_table_of_known_size_takes_no_more_than_it_needs(tmp_path: Path) -> None:
    with ps.open(tmp_path, [Table("ads", dim=4, rows=100)], ram="2MiB") as store:
        assert store.stacks["ads"].top.limit == 100


def tables_of(sizes: list[int | None]) -> list[Table]:
    return [Table(f"t{i}", dim=8, rows=rows) for i, rows in enumerate(sizes)]


@given(
    st.lists(st.none() | st.integers(1, 10**6), min_size=1, max_size=6),
    st.integers(0, 10**10),
)
def test_shares_never_exceed_the_whole_and_unknown_sizes_share_alike(
    sizes: list[int | None], total: int
) -> None:
    tables = tables_of(sizes)
    shares = divide(total, tables)
    assert shares.keys() == {table.name for table in tables}
    assert sum(shares.values()) <= total
    assert sum(shares.values()) > total - 2 * len(tables)
    unknown = [shares[table.name] for table in tables if table.rows is None]
    assert max(unknown, default=0) - min(unknown, default=0) <= 1
    # Nobody has less than an equal share but who needs no more.
    least = min(shares.values())
    for table in tables:
        if table.rows is None:
            assert shares[table.name] >= total // len(tables) - len(tables)
        elif shares[table.name] < total // len(tables) - len(tables):
            assert shares[table.name] >= 4 * table.width * table.rows
    assert least >= 0


def test_what_small_tables_do_not_need_goes_to_the_large() -> None:
    shares = divide(1 << 30, tables_of([10, None, 10, None]))
    assert shares["t0"] == shares["t2"] < 5 << 20
    assert shares["t1"] == shares["t3"] > (1 << 29) - (5 << 20)
