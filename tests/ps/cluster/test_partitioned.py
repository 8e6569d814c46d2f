"""PartitionedStore: several workers have the rows, sums and errors of one, to the bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.ps.cluster import crew

ALL = "steps,calls,checkpoints,loops,short,norm,again,missing"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one worker finds."""
    folder = tmp_path_factory.mktemp("one")
    with crew.open_whole(folder / "steps") as store:
        seen = crew.train(store, crew.batches())
        found = {"seen": seen, "digest": store.digest(), "rows": store.stored_rows}
    with crew.open_whole(folder / "four") as store:
        crew.train(store, crew.batches()[:4])
        found["four"] = store.digest()
    return found


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(2, marks=pytest.mark.stress),
        3,
        pytest.param(4, marks=pytest.mark.stress),
    ],
)
def several(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of so many workers finds."""
    ended = crew.run(ALL, request.param, tmp_path_factory.mktemp("several"))
    assert [each.code for each in ended] == [0] * request.param, [each.err for each in ended]
    return [each.found for each in ended]


def test_rows_and_sums_are_those_of_one_worker(
    one: dict[str, Any], several: list[dict[str, Any]]
) -> None:
    for depth in ("2", "0"):
        each = [found["steps"][depth] for found in several]
        assert [found["digest"] for found in each] == [one["digest"]] * len(several)
        total = np.sum([found["seen"] for found in each], axis=0)
        assert total.tolist() == one["seen"]


def test_every_row_has_one_owner(one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    owned = [found["steps"]["rows"] for found in several]
    assert sum(owned) == one["rows"]
    assert min(owned) > 0.7 * one["rows"] / len(several)
    assert len(several) > 3 or all(found["steps"]["evicted"] for found in several)
    assert [found["steps"]["workers"] for found in several] == [len(several)] * len(several)


def test_each_worker_reads_writes_and_deletes_keys_of_its_own(
    several: list[dict[str, Any]],
) -> None:
    last = float(len(several) - 1)
    for rank, found in enumerate(several):
        assert found["calls"]["read"]
        assert found["calls"]["deleted"] == [last, 0.0, 0.0, 0.0, last, last]
        assert found["calls"]["digest"] == several[0]["calls"]["digest"]
        written = max(0, min(20000 * (len(several) - 1), 5 + 70000 * rank) - 5)
        assert found["calls"]["evaluated"] == [70000 * rank, 4 * last * written]


def test_a_checkpoint_is_of_all_workers_or_of_none(
    one: dict[str, Any], several: list[dict[str, Any]]
) -> None:
    for rank, found in enumerate(each["checkpoints"] for each in several):
        assert found["at four"] == one["four"]
        assert found["twice"].startswith("ConfigError: checkpoint: expected a step after 4")
        assert "no room" in found["full"]
        assert found["full"].startswith("DiskFullError" if rank == 0 else "StoreError: commit")
        assert found["kept"] == found["reopened"] == [4, 8]
        assert found["resumed"] == [8, 8]
        assert found["end"] == one["digest"]


def test_a_loop_may_be_left_early(one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    assert all(found["loops"]["digest"] == one["digest"] for found in several)


def test_too_little_room_at_one_owner_is_told_to_all(
    one: dict[str, Any], several: list[dict[str, Any]]
) -> None:
    for rank, found in enumerate(several):
        error = found["short"]["error"]
        assert error.startswith("WorkingSetError")
        assert ("another worker" in error) == (rank > 0)
        assert found["short"]["digest"] == one["digest"]


def test_the_norm_is_that_of_the_whole_gradient(several: list[dict[str, Any]]) -> None:
    uses = len(several) - 1
    norm = math.sqrt(4 * uses**2 + 4 * uses)
    for found in several:
        assert found["norm"]["norm"] == pytest.approx(norm)
        assert found["norm"]["row"] == pytest.approx([-uses / (norm + 1e-6)] * 4)


def test_a_batch_that_is_used_again_sees_what_steps_have_changed(
    several: list[dict[str, Any]],
) -> None:
    world = len(several)
    for found in several:
        steps = [[-1.0 * world * step] * 3 for step in range(4)]
        assert found["again"]["seen"] == [*steps[:3], [-3.0 * world, 50.0, -3.0 * world]]


def test_who_did_not_come_is_named(several: list[dict[str, Any]]) -> None:
    last = len(several) - 1
    for rank, found in enumerate(several[:-1]):
        error = found["missing"]["error"]
        assert error.startswith("UnavailableError"), error
        assert f"worker {rank} of {last + 1}" in error
        assert f"but worker {last} did not come" in error
