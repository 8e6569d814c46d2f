"""Several workers train as one does: the same gradients, losses, figures, and the same end."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ps.launch import Launch
from storage.errors import ConfigError, UnavailableError
from tests.worker import crew
from worker.group import Group

CLOSE = 1e-6


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one worker finds; and a store cut after 6 steps, for others to go on with."""
    folder = tmp_path_factory.mktemp("one")
    with crew.open_store(folder / "whole") as store:
        trainer = crew.make_trainer(store)
        trainer.train()
        test = trainer.evaluate()
        assert test is not None
        found = {**crew.figures(trainer), "test": asdict(test)}
    with crew.open_store(folder / "gradients", lr=crew.RATE) as store:
        found["gradients"] = crew.gradients(crew.make_trainer(store, steps=1), folder)
    with crew.open_store(folder / "cut") as store:
        crew.make_trainer(store, steps=6).train()
    return {**found, "cut": folder / "cut"}


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.stress)])
def several(
    request: pytest.FixtureRequest, one: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two, and of three, workers finds."""
    folder = tmp_path_factory.mktemp("several")
    for rank in range(request.param):
        shutil.copytree(one["cut"], folder / "cut" / str(rank))
    ended = crew.run("calls,anchor,whole,gradients,resume,stop,nan", request.param, folder)
    assert [each.code for each in ended] == [0] * request.param, [each.err for each in ended]
    return [each.found for each in ended]


def _close(ours: Any, theirs: Any, tolerance: float = CLOSE) -> bool:
    """To ``tolerance`` of the largest."""
    a, b = np.concatenate(list(map(np.ravel, ours))), np.concatenate(list(map(np.ravel, theirs)))
    return float(np.abs(a - b).max()) <= tolerance * float(np.abs(b).max())


def test_calls_have_the_same_answer_at_all(several: list[dict[str, Any]]) -> None:
    world = len(several)
    joined = [float(i) for rank in range(world) for i in range(rank)]
    for found in several:
        assert found["calls"] == {
            "sum": [1.5 * world, sum(range(world))],
            "any": [True, False, True],
            "gather": [joined, [-value for value in joined]],
        }


def test_rows_gradients_stay_with_their_worker(several: list[dict[str, Any]]) -> None:
    """The layers' hooks fire at all, also where there are no examples; the anchor has none."""
    for rank, found in enumerate(several):
        bags = 12 if rank < len(several) - 1 else 0
        expected = {"parameter": False, "without": 0, "grad": 1.0, "records": [bags]}
        assert found["anchor"] == expected


def test_gradients_are_those_of_the_whole_batch(
    one: dict[str, Any], several: list[dict[str, Any]]
) -> None:
    each = [found["gradients"] for found in several]
    for found in each:
        assert found["layers"] == each[0]["layers"]  # to the bit
        assert _close(found["layers"], one["gradients"]["layers"])
    rows = sum(np.array(found["rows"]) for found in each)
    assert np.abs(rows).max() > 0
    assert _close(rows, one["gradients"]["rows"])


def test_losses_and_layers_are_those_of_one_worker(
    one: dict[str, Any], several: list[dict[str, Any]]
) -> None:
    first = several[0]["whole"]
    assert len(first["losses"]) == 16
    for found in (found["whole"] for found in several):
        assert found["losses"] == first["losses"]
        assert found["layers"] == first["layers"]
        assert found["examples"] == one["examples"]
        assert _close([found["losses"]], [one["losses"]])
        assert _close(found["layers"], one["layers"], 1e-4)  # Adam divides by small roots
        assert found["checkpoints"] == [16]


def test_figures_are_of_all_examples(one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    for found in (found["whole"] for found in several):
        for part in ("train", "test"):
            assert found[part] == several[0]["whole"][part]
            assert found[part]["examples"] == one[part]["examples"]
            for name, value in one[part].items():
                assert found[part][name] == pytest.approx(value, rel=1e-4), (part, name)


def test_another_number_of_workers_goes_on_from_a_checkpoint(
    one: dict[str, Any], several: list[dict[str, Any]]
) -> None:
    for found in several:
        assert found["resume"]["resumed"] == 6
        assert _close([found["resume"]["losses"]], [one["losses"][6:]])


def test_one_worker_stops_all_after_the_same_step(several: list[dict[str, Any]]) -> None:
    for found in several:
        assert found["stop"] == {"step": 5, "stopped": True, "checkpoints": [3, 5]}


def test_what_is_not_finite_at_one_worker_counts_at_all(several: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(several):
        for where in ("layer", "rows"):
            stopped = found["nan"][f"{where} stop"]
            assert stopped["step"] == 3
            assert "expected finite gradients" in stopped["error"]
            skipped = found["nan"][f"{where} skip"]
            assert (skipped["step"], skipped["error"]) == (5, "")
            # Layers are left out at all workers; rows at the one whose they are.
            assert skipped["bad_steps"] == (2 if where == "layer" else 0)
            assert (skipped["skipped_rows"] > 0) == (rank == 1)


def test_nobody_waits_for_one_that_is_late_or_dies(tmp_path: Path) -> None:
    first, second = crew.run("calls,lateness,death", 2, tmp_path)
    assert second.code == 9
    assert first.code != 0
    assert "a sum: expected all workers to take part within 2 s" in first.err
    last = first.err.strip().splitlines()[-1]
    assert all(word in last for word in (UnavailableError.__name__, "worker 0 of 2", "--resume"))


def test_workers_who_never_meet_say_so(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="worker 1 of 2: the meeting"):
        Group(Launch(1, 2), meet=f"file://{tmp_path}/meet", deadline_seconds=0.5)


def test_one_worker_needs_nobody() -> None:
    with Group() as group:
        layer, column = nn.Linear(2, 1), torch.ones(3)
        assert group.wrap(layer) is layer
        assert group.gather(column, most=3)[0] is column
        assert group.any(True, False) == (True, False)
        assert float(group.sum(column).sum()) == 3.0
        assert not math.isnan(float(column.sum()))
    with pytest.raises(ConfigError, match="deadline"):
        Group(deadline_seconds=0)
