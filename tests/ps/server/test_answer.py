from __future__ import annotations

from pathlib import Path

import numpy as np

import ps
from ps.server.answer import gather, hand_out

TABLE = ps.Table("ads", dim=4)


def test_embeddings_are_those_of_a_read_wherever_they_are_written(tmp_path: Path) -> None:
    keys = np.arange(50, dtype=np.uint64)
    with ps.open(tmp_path, [TABLE], ram="4MiB") as store:
        store.write("ads", keys[:20], np.ones((20, 4)))
        expected = store.read("ads", keys)
        first = gather(store, "ads", keys, 7, None)
        assert (first.clock, first.hits) == (7, 20)
        assert np.array_equal(first.values, expected)
        out = np.zeros((50, 4), np.float32)
        asked: list[int] = []
        second = gather(store, "ads", keys, 8, lambda clock: asked.append(clock) or out)
        assert second.values is out and asked == [8] and second.hits == 50
        assert np.array_equal(out, expected)
        assert store.stacks["ads"].top.pinned == 0


def test_whole_rows_say_what_is_missing(tmp_path: Path) -> None:
    keys = np.array([1, 2], np.uint64)
    with ps.open(tmp_path, [TABLE], ram="4MiB") as store:
        store.write("ads", keys[:1], np.ones((1, 4)))
        answer = hand_out(store, "ads", keys, 3)
        assert answer.clock == 3
        assert answer.missing.tolist() == [False, True]
        assert answer.values.shape == (2, TABLE.width)
        assert (answer.values[0, :4] == 1).all()
