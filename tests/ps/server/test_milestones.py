"""Milestones: a shard's checkpoints are made once, and count only when a marker says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ps.server.place import Place
from ps.state import pack_state, unpack_state
from storage.errors import ConfigError, FencedError, RefusedError
from tests.ps.serving import enter, expected_digest, gradients, kill, push, shard_at, some_pushes


def test_a_prepared_checkpoint_is_a_third_until_it_counts(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard", place=Place(1, 2)) as shard:
        session = enter(shard)
        for step in (1, 2):
            shard.milestones.prepare(
                session, step, tree="", size=0, marker=False, committed=step - 1
            )
            shard.milestones.commit(step)
        shard.milestones.prepare(session, 3, tree="", size=0, marker=False, committed=2)
        assert shard.store.checkpoints == [1, 2, 3]
        shard.milestones.prepare(session, 3, tree="", size=0, marker=False, committed=2)
        assert shard.store.checkpoints == [1, 2, 3]
        # The marker of 3 was never made: the next one discards it.
        shard.milestones.prepare(session, 4, tree="", size=0, marker=False, committed=2)
        assert shard.store.checkpoints == [1, 2, 4]
        shard.milestones.commit(4)
        shard.milestones.commit(4)
        assert shard.store.checkpoints == [2, 4]
        with pytest.raises(RefusedError, match="step 9"):
            shard.milestones.commit(9)


def test_rewinding_goes_back_and_keeps_who_came_how_far(tmp_path: Path) -> None:
    pushes = some_pushes(6)
    for durability in ("strict", "interval", "checkpoint"):
        folder = tmp_path / durability
        with shard_at(folder, durability) as shard:
            enter(shard)
            session = enter(shard, incarnation=3)
            for sequence, some in enumerate(pushes, 1):
                push(shard, session, sequence, replace(some, clock=sequence))
                if sequence == 2:
                    shard.milestones.prepare(session, 2, tree="", size=0, marker=True, committed=-1)
            with pytest.raises(RefusedError, match="step 5"):
                shard.milestones.rewind(5)
            assert session.clock == 6
            shard.milestones.rewind(2)
            assert (session.applied, session.clock) == (6, 0)
            assert shard.digest() == expected_digest(tmp_path / f"2-{durability}", pushes[:2])
            kill(shard)
        with shard_at(folder, durability) as shard:
            with pytest.raises(FencedError):
                enter(shard, incarnation=2)
            session = enter(shard, incarnation=3)
            # Steps are counted anew after the death too, or rows would seem newer than they are.
            assert (session.applied, session.clock) == (6, 0)
            push(shard, session, 7, gradients(9))
            pushed = [*pushes[:2], gradients(9)]
            assert shard.digest() == expected_digest(tmp_path / f"7-{durability}", pushed)


def test_state_of_a_checkpoint_is_that_of_its_newest(tmp_path: Path) -> None:
    def prepare(shard: Any, session: Any, word: str, committed: int = 4) -> None:
        tree, tensors = pack_state({"word": word, "t": np.arange(3)})
        shard.milestones.take_state(session, 5, offset=0, size=len(tensors), piece=tensors)
        shard.milestones.prepare(
            session, 5, tree=tree, size=len(tensors), marker=True, committed=committed
        )

    with shard_at(tmp_path / "shard") as shard:
        session = enter(shard)
        shard.milestones.prepare(session, 4, tree="", size=0, marker=True, committed=-1)
        prepare(shard, session, "one")
        assert unpack_state(*shard.milestones.state(5))["word"] == "one"
        shard.milestones.rewind(4)
        with pytest.raises(RefusedError, match="step 5"):
            shard.milestones.state(5)
        prepare(shard, session, "two")
        assert unpack_state(*shard.milestones.state(5))["word"] == "two"
        # It counts, and a client wants it again: what has changed since is saved.
        prepare(shard, session, "three", committed=5)
        assert unpack_state(*shard.milestones.state(5))["word"] == "three"


def test_a_checkpoint_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard") as shard:
        session = enter(shard)
        prepare = {"size": 0, "marker": True, "committed": -1}
        for tree in ("[", "5", "[1]", '{"t": {"__tensor__": "0"}}', "[" * 100_000):
            with pytest.raises(RefusedError):
                shard.milestones.prepare(session, 1, tree=tree, **prepare)  # type: ignore[arg-type]
        _, nothing = pack_state({})
        shard.milestones.take_state(session, 1, offset=0, size=len(nothing), piece=nothing)
        with pytest.raises(ConfigError):
            shard.milestones.prepare(
                session, 1, tree='{"__counts__": 1}', size=len(nothing), marker=True, committed=-1
            )
        with pytest.raises(RefusedError, match="step"):
            shard.milestones.prepare(session, 2**64 - 1, tree="", **prepare)  # type: ignore[arg-type]
        assert shard.store.checkpoints == []
