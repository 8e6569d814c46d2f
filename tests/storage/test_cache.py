"""CacheTier: what is admitted is found, what is pinned stays, what is evicted is returned."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from storage.array import CodedArray, FloatArray, RowArray
from storage.cache import CacheTier, overhead_bytes
from tests.storage.digesting import digest
from tests.storage.test_tier import (
    CPU,
    DIM,
    LAST,
    STATE,
    WIDTH,
    as_keys,
    ones,
    rows_of,
    shape_of,
)

ARRAYS = ["float", "coded"]


def make_cache(capacity: int, kind: str = "float") -> CacheTier:
    array: RowArray = FloatArray(capacity, DIM, STATE, CPU)
    if kind == "coded":
        array = CodedArray(capacity, DIM, STATE, shape_of("float16").codec)
    return CacheTier("ram", array, capacity=capacity, width=WIDTH)


def filled(capacity: int, count: int, kind: str = "float") -> CacheTier:
    """A cache with rows 0 .. count - 1, all dirty, 0 the least recent."""
    cache = make_cache(capacity, kind)
    _, evicted = cache.admit(rows_of(np.arange(count, dtype=np.uint64), 1))
    assert len(evicted) == 0
    return cache


@pytest.mark.parametrize("kind", ARRAYS)
def test_random_batches_are_cached_and_evicted_as_an_ordered_dict_does(kind: str) -> None:
    rng, cache = np.random.default_rng(0), make_cache(50, kind)
    model: OrderedDict[int, int] = OrderedDict()
    universe = np.concatenate((as_keys(0, LAST), np.arange(1, 120, dtype=np.uint64)))
    for tag in range(1, 150):
        batch = rng.permutation(universe)[: rng.integers(0, 40)]
        dirty = bool(tag % 2)
        known = [key for key in batch.tolist() if key in model]
        new = [key for key in batch.tolist() if key not in model]
        marked = {key: dirty or cache.peek(as_keys(key))[0].dirty[0] for key in known}
        positions, evicted = cache.admit(rows_of(batch, tag, dirty=dirty))
        for key in known:
            model.move_to_end(key)
        gone = [key for key in model if key not in known][: max(0, len(model) + len(new) - 50)]
        assert evicted.keys.tolist() == gone
        assert evicted.steps.tolist() == [model.pop(key) for key in gone]
        model.update(dict.fromkeys(batch.tolist(), tag))
        assert cache.place(batch).tolist() == positions.tolist()
        assert [bool(cache.dirty[p]) for p in cache.place(np.array(known, np.uint64))] == [
            marked[key] for key in known
        ]
        if tag % 5 == 0:
            gone_now = rng.permutation(universe)[:10]
            cache.delete(gone_now)
            for key in gone_now.tolist():
                model.pop(key, None)
        rows, missing = cache.peek(universe)
        assert missing.tolist() == [key not in model for key in universe.tolist()]
        assert rows.steps[~missing].tolist() == [model[k] for k in rows.keys[~missing].tolist()]
        assert cache.check() == [] and len(cache) == len(model)


def test_rows_handed_to_the_tier_above_are_the_first_to_go() -> None:
    cache = filled(10, 10)
    cache.lookup(as_keys(7, 8), ones(as_keys(7, 8)))
    _, evicted = cache.admit(rows_of(as_keys(20, 21), 1))
    assert sorted(evicted.keys.tolist()) == [7, 8]


def test_a_pinned_row_stays_in_its_place_until_it_was_unpinned_as_often() -> None:
    cache = filled(4, 4)
    place = cache.place(as_keys(0))
    cache.pin(place)
    cache.pin(place)
    for pins in (2, 1):
        cache.admit(rows_of(np.arange(pins * 100, pins * 100 + 9, dtype=np.uint64), 2))
        assert cache.place(as_keys(0)) == place and cache.pinned == 1
        cache.unpin(place)
    assert cache.pinned == 0
    cache.admit(rows_of(np.arange(300, 304, dtype=np.uint64), 3))
    assert cache.place(as_keys(0)) == -1


def test_rows_are_refused_only_when_everything_else_is_pinned() -> None:
    cache = filled(4, 4)
    cache.pin(cache.place(as_keys(0, 1, 2)))
    positions, evicted = cache.admit(rows_of(as_keys(10, 11), 1))
    assert evicted.keys.tolist() == [3]
    assert (positions >= 0).tolist() == [True, False]
    assert cache.check() == []


def test_a_key_that_is_admitted_again_is_not_evicted_for_its_own_batch() -> None:
    cache = filled(3, 3)
    cache.pin(cache.place(as_keys(1, 2)))
    positions, evicted = cache.admit(rows_of(as_keys(0, 9), 5))
    assert positions.tolist() == [*cache.place(as_keys(0)).tolist(), -1]
    assert len(evicted) == 0 and cache.peek(as_keys(0))[0].steps[0] == 5


def test_making_way_for_keys_leaves_nothing_to_evict_and_spares_them() -> None:
    cache = filled(6, 6)
    batch = as_keys(0, 1, 10, 11, 12)  # 0 and 1 are the least recent
    assert cache.evict_for(batch).keys.tolist() == [2, 3, 4]
    positions, evicted = cache.admit(rows_of(batch, 2))
    assert (positions >= 0).all() and len(evicted) == 0 and cache.pinned == 0


def test_rows_that_made_way_can_be_put_back() -> None:
    cache = filled(6, 6)
    out = cache.evict_for(as_keys(10, 11))
    _, evicted = cache.admit(out)
    assert len(evicted) == 0 and len(cache) == 6 and cache.check() == []
    rows, missing = cache.peek(np.arange(6, dtype=np.uint64))
    assert not missing.any() and rows.dirty.all()


@pytest.mark.parametrize("kind", ARRAYS)
def test_shrinking_moves_rows_with_all_that_belongs_to_them(kind: str) -> None:
    cache, rng = filled(3000, 3000, kind), np.random.default_rng(0)
    cache.delete(rng.permutation(np.arange(3000, dtype=np.uint64))[:2000])
    cache.dirty[cache.place(cache.keys_at(cache.occupied())[::3])] = 0
    held = cache.keys_at(cache.occupied())
    order = cache.rows_at(cache.policy.order()).keys.tolist()
    before, _ = cache.peek(held)
    for limit in (2500, 1700, 1000):
        cache.shrink(limit)
        assert cache.check() == []
        after, missing = cache.peek(held)
        assert not missing.any()
        for field in ("values", "steps", "dirty"):
            np.testing.assert_array_equal(getattr(after, field), getattr(before, field))
        assert cache.rows_at(cache.policy.order()).keys.tolist() == order
    _, evicted = cache.admit(rows_of(as_keys(10_000), 1))
    assert evicted.keys.tolist() == order[:1] and cache.check() == []


def test_a_cache_that_shrank_before_it_was_full_uses_all_that_is_left() -> None:
    cache = filled(100, 10)
    cache.shrink(40)
    positions, evicted = cache.admit(rows_of(np.arange(50, 80, dtype=np.uint64), 1))
    assert len(evicted) == 0 and positions.max() < 40 and cache.check() == []


def test_less_memory_is_counted_after_shrinking() -> None:
    cache = filled(5000, 1000)
    assert cache.overhead_bytes == overhead_bytes(5000)
    cache.shrink(1000)
    assert cache.overhead_bytes == overhead_bytes(1000)


def test_the_overhead_that_is_counted_is_what_is_allocated() -> None:
    cache = make_cache(1000)
    marks = cache._marks
    held = [array.nbytes for array in (marks.steps, marks.dirty, marks.pins, marks.keys)]
    held += [array.nbytes for array in cache.policy.state]
    assert overhead_bytes(1000) == sum(held) + cache._index.slots.nbytes


def test_dirty_positions_are_found_piece_by_piece() -> None:
    cache = filled(100, 100)
    cache.dirty[:] = 0
    cache.dirty[[3, 50, 51, 99]] = 1
    assert cache.dirty_positions(0, 2).tolist() == [3, 50]
    assert cache.dirty_positions(51, 10).tolist() == [51, 99]
    assert len(cache.dirty_positions(100, 10)) == 0


def test_use_counts_accesses_and_keeps_rows_from_eviction() -> None:
    cache = filled(4, 4)
    cache.use(np.append(cache.place(as_keys(0)), -1), np.array([3, 2], np.int32))
    stats = cache.stats
    assert (stats.accesses, stats.access_hits, stats.keys, stats.key_hits) == (5, 3, 2, 1)
    _, evicted = cache.admit(rows_of(as_keys(10, 11, 12), 1))
    assert 0 not in evicted.keys.tolist()


@pytest.mark.parametrize("break_it", ["values", "steps", "dirty", "pins", "order"])
def test_the_digest_sees_every_kind_of_change(break_it: str) -> None:
    cache = filled(8, 8)
    before = digest(cache)
    assert digest(cache) == before
    place = cache.place(as_keys(3))
    if break_it == "values":
        cache.array.scatter(place, np.full((1, WIDTH), 9, np.float32))
    elif break_it == "steps":
        cache.steps[place] += 1
    elif break_it == "dirty":
        cache.dirty[place] ^= 1
    elif break_it == "pins":
        cache.pin(place)
    else:
        cache.use(place, ones(place))
    assert digest(cache) != before


@pytest.mark.parametrize("break_it", ["index", "pins", "dirty", "order", "free"])
def test_check_names_what_is_broken(break_it: str) -> None:
    cache = filled(8, 6)
    if break_it == "index":
        cache._keys[0] += np.uint64(100)
    elif break_it == "pins":
        cache._pins[0] = 1
    elif break_it == "dirty":
        cache.dirty[7] = 1
    elif break_it == "order":
        cache.policy.remove(np.array([2]))
    else:
        cache.delete(as_keys(1, 2))
        first = cache._vacancies._first
        cache._keys[first] = first  # it comes again after itself
    assert any("ram" in line for line in cache.check())


def test_rows_that_no_step_changed_are_the_first_to_go_but_not_from_under_a_pin() -> None:
    cache = filled(6, 6)
    keys = np.arange(6, dtype=np.uint64)
    positions = cache.place(keys)
    assert np.array_equal(cache.keys_at(positions[[4, 1]]), keys[[4, 1]])
    cache.steps[positions[[3, 4, 5]]] = 0
    cache.pin(positions[4:5])
    cache.demote_fresh(positions[1:])
    assert sorted(cache.evict(2).keys.tolist()) == [3, 5]
    cache.unpin(positions[4:5])
    assert cache.evict(1).keys.tolist() == [0]
    cache.demote_fresh(positions[[1, 4]])
    assert cache.evict(1).keys.tolist() == [4]


def test_places_are_taken_for_rows_that_the_caller_sets() -> None:
    cache = filled(4, 2)
    places = cache.take(as_keys(10, 11))
    assert cache.place(as_keys(10, 11)).tolist() == places.tolist()
    assert not cache.steps[places].any() and not cache.dirty[places].any()
    assert cache.stats.admitted == 4 and cache.check() == [] and len(cache) == 4


def test_what_a_taken_place_pushes_out_is_gone_in_the_order_of_the_policy() -> None:
    cache = filled(4, 4)
    kept = cache.place(as_keys(0))
    cache.pin(kept)
    cache.take(as_keys(10, 11))
    assert (cache.place(as_keys(0, 1, 2, 3)) >= 0).tolist() == [True, False, False, True]
    assert cache.stats.evicted == 2 and cache.check() == []
    assert not cache.dirty[cache.place(as_keys(10, 11))].any()


def test_fewer_places_are_taken_when_the_others_are_pinned() -> None:
    cache = filled(4, 3)
    cache.pin(cache.place(as_keys(0, 1)))
    places = cache.take(as_keys(10, 11, 12))
    assert len(places) == 2 and cache.place(as_keys(10, 11)).tolist() == places.tolist()
    assert cache.place(as_keys(12)).tolist() == [-1]
    assert len(cache.take(as_keys())) == 0 and cache.check() == []


def test_random_takes_and_pins_leave_the_tier_sound() -> None:
    rng, cache = np.random.default_rng(5), make_cache(30)
    held: list[np.ndarray] = []
    for _ in range(300):
        keys = rng.choice(100, rng.integers(0, 12), replace=False).astype(np.uint64)
        absent = keys[cache.place(keys) < 0]
        pinned = {int(p) for positions in held for p in positions}
        places = cache.take(absent)
        assert len(places) == min(len(absent), 30 - len(pinned))
        assert not pinned & set(places.tolist())
        cache.pin(places)
        held.append(places)
        if len(held) > 2 or rng.random() < 0.3:
            cache.unpin(held.pop(0))
        assert cache.check() == []
