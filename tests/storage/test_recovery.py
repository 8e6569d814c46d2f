"""Recovery: of each key the version in the highest block counts, unless a tombstone is later."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.log import BlockLog
from storage.recovery import recover
from tests.storage.test_tier import shape_of

SHAPE = shape_of()
keys = st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=8)
steps = st.lists(st.tuples(st.sampled_from(["write", "delete", "skip"]), keys), max_size=40)


@given(steps)
@settings(max_examples=60)
def test_the_index_is_that_of_a_replay_in_order(steps: list[tuple[str, list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(BlockLog(Path(folder), ["t"])) as log:
        model: dict[int, int] = {}
        end = 0
        for action, chosen in steps:
            named = np.array(chosen, np.uint64)
            if action == "write":
                block = np.zeros(1, SHAPE.dtype)
                block["count"], block["keys"][0, : len(chosen)] = len(chosen), named
                log.append("t", end, block)
                model |= {key: end << SHAPE.place_bits | i for i, key in enumerate(chosen)}
                end += 1
            elif action == "delete":
                log.tombstones["t"].bury(end, named)
                for key in chosen:
                    model.pop(key, None)
            else:
                end += 70  # numbers that were cut back
        log.wait()
        index, segments = recover(log, "t", SHAPE.place_bits)
        everything = np.arange(31, dtype=np.uint64)
        assert index.find(everything).tolist() == [model.get(key, -1) for key in range(31)]
        assert segments.blocks == sum(action == "write" for action, _ in steps)
        live = sum(segments.live(int(segment)) for segment in segments.present)
        assert live == len(model) == len(index)
