"""Every tier keeps the contract of `storage.tier`: one suite over all of them, against a dict.

`Stack` builds the tiers that the other tests of storage/ use, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.address import ENTRY_BYTES
from storage.array import CodedArray, FloatArray, RowArray
from storage.block import BlockShape
from storage.budget import Budget
from storage.cache import CacheTier, overhead_bytes
from storage.codec import codec
from storage.hierarchy import Hierarchy
from storage.log import BlockLog
from storage.rows import Floats, Keys, Rows
from storage.ssd import SsdTier
from tests.storage.digesting import digest

LAST = 2**64 - 1
CPU = torch.device("cpu")
DIM, STATE = 4, 1
WIDTH = DIM + STATE


def shape_of(dtype: str = "float32") -> BlockShape:
    return BlockShape(DIM, STATE, codec(dtype))


def as_keys(*keys: int) -> Keys:
    return np.array(keys, np.uint64)


def ones(keys: Keys) -> np.ndarray:
    return np.ones(len(keys), np.int32)


def fresh(keys: Keys) -> Floats:
    """Initial rows: a closed form of the key, exact in float32, with no state."""
    values = np.zeros((len(keys), WIDTH), np.float32)
    values[:, :DIM] = (keys % np.uint64(251)).astype(np.float32)[:, None]
    return values


def rows_of(keys: Keys, tag: int, *, dirty: bool = True) -> Rows:
    """Rows whose values and steps tell the key and ``tag``, exact in every codec but for int8."""
    rows = Rows.empty(len(keys), WIDTH)
    rows.keys[:] = keys
    rows.values[:] = np.float32(tag % 128) + np.arange(WIDTH, dtype=np.float32)
    rows.values[:, 0] = (keys % np.uint64(251)).astype(np.float32)
    rows.steps[:] = tag
    rows.dirty[:] = dirty
    return rows


def row_cost(row_bytes: int) -> int:
    """Bytes of a budget that one cached row needs, its share of the index included."""
    return row_bytes + overhead_bytes(1000) // 1000 + 1 + ENTRY_BYTES


@dataclass
class Stack:
    """Tiers over one log. ``caches`` from the top down; ``tier`` is what a test talks to."""

    tier: SsdTier | Hierarchy
    log: BlockLog
    ssd: SsdTier
    caches: tuple[CacheTier, ...] = ()
    budget: Budget | None = None

    @property
    def top(self) -> Hierarchy:
        assert isinstance(self.tier, Hierarchy)
        return self.tier


def make_ssd(log: BlockLog, dtype: str = "float32", *, buffer_bytes: int = 1 << 14) -> SsdTier:
    return SsdTier("t", shape_of(dtype), log, buffer_bytes=buffer_bytes)


def make_stack(
    log: BlockLog,
    *capacities: int,
    dtype: str = "float32",
    coded: bool = False,
    total: int | None = None,
    cache: type[CacheTier] = CacheTier,
    buffer_bytes: int = 1 << 14,
) -> Stack:
    """Caches of these capacities, from the top down, over an SsdTier; the lowest has the budget."""
    ssd = make_ssd(log, dtype, buffer_bytes=buffer_bytes)
    if not capacities:
        return Stack(ssd, log, ssd)
    shape = shape_of(dtype)
    if total is None:
        total = int(1.05 * (ssd.memory_bytes + capacities[-1] * row_cost(4 * WIDTH))) + 20_000
    budget = Budget(total, "--ram")
    tier: SsdTier | Hierarchy = ssd
    caches: list[CacheTier] = []
    for level, capacity in enumerate(reversed(capacities)):
        array: RowArray = FloatArray(capacity, DIM, STATE, CPU)
        if coded and level == 0:
            array = CodedArray(capacity, DIM, STATE, shape.codec)
        name = ("ram", "hbm")[level]
        caches.insert(0, cache(name, array, capacity=capacity, width=WIDTH))
        tier = Hierarchy(
            caches[0], tier, budget=None if level else budget, shape=shape, fresh=fresh,
            staging_bytes=64 * 4 * 4 * WIDTH,
        )  # fmt: skip
    return Stack(tier, log, ssd, tuple(caches), budget)


STACKS = {
    "ssd": ((), {}),
    "ram over ssd": ((40,), {}),
    "coded ram over ssd": ((40,), {"dtype": "bfloat16", "coded": True}),
    "large ram over ssd": ((5000,), {}),
    "hbm over ram over ssd": ((30, 60), {}),
    "hbm over coded ram over ssd": ((30, 60), {"dtype": "float16", "coded": True}),
}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockLog]:
    made = BlockLog(tmp_path, ["t"])
    yield made
    made.close()


@pytest.fixture(params=STACKS)
def stack(request: pytest.FixtureRequest, log: BlockLog) -> Stack:
    capacities, options = STACKS[request.param]
    return make_stack(log, *capacities, **options)


class Oracle:
    """What a tier must answer, by key: values and step."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[tuple[float, ...], int]] = {}

    def write(self, rows: Rows) -> None:
        for key, values, step in zip(
            rows.keys.tolist(), rows.values.tolist(), rows.steps.tolist(), strict=True
        ):
            self.rows[key] = (tuple(values), step)

    def delete(self, keys: Keys) -> None:
        for key in keys.tolist():
            self.rows.pop(key, None)

    def compare(self, rows: Rows, missing: np.ndarray) -> None:
        for i, key in enumerate(rows.keys.tolist()):
            assert missing[i] == (key not in self.rows), f"key {key}"
            if not missing[i]:
                assert (tuple(rows.values[i].tolist()), int(rows.steps[i])) == self.rows[key]


def test_random_writes_deletes_and_flushes_are_answered_as_a_dict_does(stack: Stack) -> None:
    tier, oracle = stack.tier, Oracle()
    rng = np.random.default_rng(0)
    universe = np.concatenate((as_keys(0, LAST), rng.integers(2, LAST, 400, dtype=np.uint64)))
    for tag in range(1, 60):
        chosen = rng.permutation(universe)[: rng.integers(0, 120)]
        rows = rows_of(chosen, tag)
        tier.write(rows)
        oracle.write(rows)
        if tag % 4 == 0:
            gone = rng.permutation(universe)[:30]
            tier.delete(gone)
            oracle.delete(gone)
        if tag % 9 == 0:
            tier.flush()
        asked = rng.permutation(universe)[:150]
        oracle.compare(*tier.peek(asked))
        oracle.compare(*tier.lookup(asked, ones(asked)))
        assert tier.check() == []
    oracle.compare(*tier.peek(universe))


def test_a_missing_key_is_an_answer(stack: Stack) -> None:
    stack.tier.write(rows_of(as_keys(0, LAST), 1))
    rows, missing = stack.tier.peek(as_keys(5, LAST, 6, 0))
    assert missing.tolist() == [True, False, True, False]
    assert rows.keys.tolist() == [5, LAST, 6, 0]
    assert stack.tier.lookup(as_keys(7), ones(as_keys(7)))[1].all()


def test_empty_batches_are_fine_and_change_nothing(stack: Stack) -> None:
    stack.tier.write(rows_of(as_keys(1), 1))
    none = as_keys()
    stack.tier.write(rows_of(none, 2))
    stack.tier.delete(none)
    for rows, missing in (stack.tier.peek(none), stack.tier.lookup(none, ones(none))):
        assert rows.values.shape == (0, WIDTH) and len(missing) == 0
    assert not stack.tier.peek(as_keys(1))[1].any()
    assert stack.tier.check() == []


def test_deleting_unknown_keys_is_fine_and_a_deleted_key_can_come_back(stack: Stack) -> None:
    tier, keys = stack.tier, as_keys(0, 3, LAST)
    tier.delete(keys)
    tier.write(rows_of(keys, 1))
    tier.delete(as_keys(3, 99))
    assert tier.peek(keys)[1].tolist() == [False, True, False]
    tier.write(rows_of(as_keys(3), 2))
    rows, missing = tier.peek(keys)
    assert not missing.any() and rows.steps.tolist() == [1, 2, 1]


def test_peek_changes_nothing(stack: Stack) -> None:
    stack.tier.write(rows_of(np.arange(100, dtype=np.uint64), 1))
    before = [digest(cache) for cache in stack.caches]
    counted = [tier.stats.report() for tier in (*stack.caches, stack.ssd)]
    stack.tier.peek(np.arange(50, 150, dtype=np.uint64))
    assert [digest(cache) for cache in stack.caches] == before
    assert [tier.stats.report() for tier in (*stack.caches, stack.ssd)] == counted


def test_rows_handed_out_are_copies(stack: Stack) -> None:
    keys = np.arange(100, dtype=np.uint64)
    stack.tier.write(rows_of(keys, 1))
    for rows, _ in (stack.tier.peek(keys), stack.tier.lookup(keys, ones(keys))):
        rows.values[:] = -1
        rows.steps[:] = 77
    rows, _ = stack.tier.peek(keys)
    np.testing.assert_array_equal(rows.values, rows_of(keys, 1).values)
    assert (rows.steps == 1).all()


def test_a_flushed_tier_shows_the_same_rows_when_its_log_is_read_again(stack: Stack) -> None:
    rng = np.random.default_rng(1)
    oracle = Oracle()
    universe = np.concatenate((as_keys(0, LAST), np.arange(1, 300, dtype=np.uint64)))
    for tag in range(1, 12):
        rows = rows_of(rng.permutation(universe)[:90], tag)
        stack.tier.write(rows)
        oracle.write(rows)
        gone = rng.permutation(universe)[:10]
        stack.tier.delete(gone)
        oracle.delete(gone)
    stack.tier.flush()
    again = make_ssd(stack.log, stack.ssd.shape.codec.name)
    assert len(again) == len(oracle.rows) == len(stack.ssd)
    oracle.compare(*again.peek(universe))
    assert again.check() == []


def test_every_lookup_is_counted_once_a_tier(stack: Stack) -> None:
    keys = as_keys(1, 2, 3)
    stack.tier.write(rows_of(keys[:2], 1))
    stack.tier.lookup(keys, np.array([5, 1, 2], np.int32))
    first = (stack.caches or (stack.ssd,))[0].stats
    assert (first.accesses, first.keys, first.access_hits, first.key_hits) == (8, 3, 6, 2)


def test_closing_twice_is_fine(stack: Stack) -> None:
    stack.tier.close()
    stack.tier.close()
