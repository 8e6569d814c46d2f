"""Window: of every use, the next batch that uses the key, as plain Python finds it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.window import Window, window_bytes
from tests.storage.test_index import keys as any_key

batches = st.lists(st.lists(any_key, unique=True, max_size=12), max_size=30)


def as_array(batch: list[int]) -> np.ndarray:
    return np.array(batch, np.uint64)


@given(batches, st.integers(1, 6), st.data())
@settings(max_examples=150, deadline=None)
def test_it_knows_of_every_use_the_next_one_in_the_window(
    given_batches: list[list[int]], reach: int, data: st.DataObject
) -> None:
    uses = sum(sorted(map(len, given_batches))[-reach:]) + 1  # so that the ring goes round
    window, entered = Window(uses, uses), 0
    wanted: dict[int, set[int]] = {}
    for turn in range(1, len(given_batches) + 1):
        while entered < min(len(given_batches), turn + reach - 1):
            entered += 1
            batch = given_batches[entered - 1]
            before = {key for one in given_batches[turn - 1 : entered - 1] for key in one}
            first = window.enter(entered, as_array(batch))
            assert first is not None and first.tolist() == [key not in before for key in batch]
            chosen = data.draw(st.lists(st.booleans(), min_size=len(batch), max_size=len(batch)))
            window.want(entered, np.array(chosen, np.bool_))
            wanted[entered] = {key for key, yes in zip(batch, chosen, strict=True) if yes}
        later = {n: given_batches[n - 1] for n in range(turn + 1, entered + 1)}
        assert window.batches == [turn, *later]
        assert window.nexts(turn).tolist() == [
            next((n for n, batch in later.items() if key in batch), 0)
            for key in given_batches[turn - 1]
        ]
        most = data.draw(st.integers(0, 20))
        keys, numbers = window.wanted(turn, most)
        expected = [(key, n) for n in later for key in later[n] if key in wanted[n]]
        expected = expected[:most] if wanted[turn] else []
        assert list(zip(keys.tolist(), numbers.tolist(), strict=True)) == expected
        for key, n in expected:
            wanted[n].remove(key)
        window.leave(turn)


def test_a_batch_without_room_changes_nothing_and_comes_later() -> None:
    window = Window(6, 6)
    assert window.enter(1, as_array([1, 2, 3])) is not None
    assert window.enter(2, as_array([1, 2, 4, 5])) is None
    assert window.batches == [1] and window.nexts(1).tolist() == [0, 0, 0]
    window.leave(1)
    assert window.enter(2, as_array([1, 2, 4, 5])) is not None
    assert len(window.nexts(1)) == 0 and len(window.nexts(2)) == 4


def test_too_many_different_keys_wait_too() -> None:
    window = Window(100, 5)
    assert window.enter(1, as_array([1, 2, 3])) is not None
    assert window.enter(2, as_array([4, 5, 6])) is None
    assert window.enter(2, as_array([2, 4, 5])) is not None
    window.leave(1)
    assert window.enter(3, as_array([6, 7, 8])) is None
    window.leave(2)
    assert window.enter(3, as_array([6, 7, 8])) is not None


def test_it_reaches_no_further_than_its_gaps_can_say() -> None:
    window = Window(1000, 1000)
    assert window.enter(1, as_array([7])) is not None
    assert window.enter(129, as_array([7])) is None
    assert window.enter(128, as_array([7])) is not None
    assert window.nexts(1).tolist() == [128]


def test_the_bytes_that_are_counted_are_what_is_allocated() -> None:
    assert Window(1000, 300).nbytes == window_bytes(1000, 300)
