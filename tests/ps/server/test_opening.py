"""Opening: a shard that died shows what it has to, by durability, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ps.server.place import Place
from storage.errors import (
    ClosedError,
    ConfigError,
    FencedError,
    MismatchError,
    RefusedError,
    UnavailableError,
)
from tests.ps.serving import (
    ADS,
    belonging,
    delete,
    enter,
    expected_digest,
    gradients,
    kill,
    pull,
    push,
    redo_files,
    shard_at,
    some_pushes,
    soon,
    write,
)


def test_strict_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    pushes = some_pushes(12)
    with shard_at(tmp_path / "shard", "strict") as shard:
        session = enter(shard)
        for sequence, some in enumerate(pushes[:8], 1):
            push(shard, session, sequence, some)
            assert session.durable == sequence
            if sequence == 5:
                shard.cut(session, closing=False)
        kill(shard)
    with shard_at(tmp_path / "shard", "strict") as shard:
        session = enter(shard)
        assert (session.applied, session.durable) == (8, 8)
        for sequence, some in enumerate(pushes, 1):
            push(shard, session, sequence, some)
        kill(shard)
    with shard_at(tmp_path / "shard", "strict") as shard:
        assert shard.digest() == expected_digest(tmp_path / "oracle", pushes)
        assert shard.check() == []


def test_strict_replays_every_kind_of_change_and_both_processes(tmp_path: Path) -> None:
    keys = np.arange(30, dtype=np.uint64)
    values = np.ones((30, ADS.dim), np.float32)
    with shard_at(tmp_path / "shard", "strict") as shard:
        first = enter(shard)
        push(shard, first, 1, gradients(0))
        write(shard, first, 2, "ads", keys, values)
        second = enter(shard, incarnation=2)
        delete(shard, second, 1, "ads", keys[:5])
        push(shard, second, 2, replace(gradients(1), clock=4))
        digest = shard.digest()
        kill(shard)
    with shard_at(tmp_path / "shard", "strict") as shard:
        assert shard.digest() == digest
        session = enter(shard, incarnation=2)
        assert (session.applied, session.clock) == (2, 4)
        with pytest.raises(FencedError):
            enter(shard, incarnation=1)


def test_interval_shows_the_last_cut_and_the_rest_is_repeated(tmp_path: Path) -> None:
    pushes = some_pushes(10)
    with shard_at(tmp_path / "shard", "interval") as shard:
        session = enter(shard)
        for sequence, some in enumerate(pushes, 1):
            push(shard, session, sequence, some)
            if sequence == 6:  # between pieces of one step
                shard.store.cut()
        assert session.durable == 6
        kill(shard)
    with shard_at(tmp_path / "shard", "interval") as shard:
        assert shard.digest() == expected_digest(tmp_path / "oracle-6", pushes[:6])
        session = enter(shard, awaited=10)
        assert session.applied == session.durable == 6
        with pytest.raises(UnavailableError, match="train-0 to repeat"):
            pull(shard, session, "ads", pushes[0].keys, deadline=soon(0.01))
        for sequence in range(7, 11):
            push(shard, session, sequence, pushes[sequence - 1])
        pull(shard, session, "ads", pushes[0].keys)
        assert shard.digest() == expected_digest(tmp_path / "oracle", pushes)


def test_checkpoint_goes_back_to_the_checkpoint(tmp_path: Path) -> None:
    pushes = some_pushes(10)
    with shard_at(tmp_path / "shard") as shard:
        session = enter(shard)
        assert not shard.keeps
        for sequence, some in enumerate(pushes, 1):
            push(shard, session, sequence, some)
            if sequence == 4:
                shard.milestones.prepare(session, 4, tree="", size=0, marker=True, committed=-1)
        kill(shard)
    with shard_at(tmp_path / "shard") as shard:
        session = enter(shard, awaited=10)
        assert session.applied == 4
        pull(shard, session, "ads", pushes[0].keys)  # nobody is waited for
        assert shard.digest() == expected_digest(tmp_path / "oracle", pushes[:4])


def test_another_durability_next_time_replays_the_redo_log_all_the_same(tmp_path: Path) -> None:
    pushes = some_pushes(5)
    with shard_at(tmp_path / "shard", "strict") as shard:
        session = enter(shard)
        for sequence, some in enumerate(pushes, 1):
            push(shard, session, sequence, some)
        kill(shard)
    assert redo_files(tmp_path / "shard")
    with shard_at(tmp_path / "shard", "checkpoint") as shard:
        assert not redo_files(tmp_path / "shard")
        kill(shard)
    with shard_at(tmp_path / "shard", "strict") as shard:
        assert shard.digest() == expected_digest(tmp_path / "oracle", pushes)
        assert enter(shard).applied == 5


def test_a_clean_end_leaves_no_redo_log(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard", "strict") as shard:
        push(shard, enter(shard), 1, gradients(0))
        assert redo_files(tmp_path / "shard")
        shard.close()
        shard.close()
        with pytest.raises(ClosedError):
            shard.digest()
    assert not redo_files(tmp_path / "shard")
    with shard_at(tmp_path / "shard") as shard:
        assert shard.digest() == expected_digest(tmp_path / "oracle", [gradients(0)])


def test_a_folder_belongs_to_one_shard(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard", place=Place(1, 3)) as shard:
        session = enter(shard)
        some = gradients(0)
        push(shard, session, 1, replace(some, keys=belonging(1, 3, 40)))
        with pytest.raises(RefusedError, match="keys of shard 1 of 3"):
            push(shard, session, 2, replace(some, keys=belonging(2, 3, 40)))
    with (
        pytest.raises(MismatchError, match="shard 1/3, expected 0/1"),
        shard_at(tmp_path / "shard"),
    ):
        pass
    with shard_at(tmp_path / "shard", place=Place(1, 3)) as shard:
        assert shard.stats()["tables"]["ads"]["tiers"][-1]["rows"] == 40


def test_tables_that_do_not_fit_leave_room_for_others(tmp_path: Path) -> None:
    with shard_at(tmp_path / "shard") as shard:
        for _ in range(2):
            with pytest.raises(ConfigError, match="--ram"):
                enter(shard, tables=[replace(ADS, name=f"t{i}") for i in range(400)])
        assert not shard.loaded
        push(shard, enter(shard), 1, gradients(0))
        assert shard.digest() == expected_digest(tmp_path / "oracle", [gradients(0)])
