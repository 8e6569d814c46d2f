"""The first promise: losses and rows have the same bits wherever the rows lie.

A table that never leaves RAM is the oracle. Everything else that a user may choose - the sizes of
the tiers, a third tier, look-ahead, threads, a stop in the middle - must not be seen in a result.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ps
import worker
from ps.admission import Admission
from ps.doorkeeper import bytes_held
from ps.optimizer import Optimizer
from ps.store import Store
from storage.budget import parse_size
from storage.policy import POLICIES
from storage.recorder import Recorder

DIM, STEPS = 6, 30
ALL = "64MiB"
OPTIMIZERS = (
    ps.SGD(lr=0.05), ps.Adagrad(lr=0.1), ps.RowWiseAdagrad(lr=0.1), ps.Adam(lr=0.01),
    ps.RowWiseAdam(lr=0.01), ps.FTRL(lr=0.1),
)  # fmt: skip
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Setting:
    """What a user may choose without changing a result. stop: steps before close and reopen."""

    ram: str = ALL
    hbm: str | None = None
    depth: int = 0
    threads: int = 1
    modules: int = 1
    stop: int | None = None
    dtype: str = "float32"
    policy: str = "lru"
    watched: bool = False
    admission: Admission | None = None
    lookahead: int | None = None


def make_batches() -> list[Batch]:
    rng = np.random.default_rng(1)
    batches = []
    for _ in range(STEPS):
        size = int(rng.integers(40, 300))
        ids = np.where(rng.random(size) < 0.5, rng.zipf(1.3, size), rng.integers(0, 4000, size))
        offsets = torch.from_numpy(np.sort(rng.integers(0, size, 30)))
        offsets[0] = 0
        batches.append((torch.from_numpy(ids * 7919 % 4001), offsets))
    return batches


BATCHES = make_batches()
WORKING_SET = max(len(ids.unique()) for ids, _ in BATCHES)


class Model(nn.Module):
    """Modules over one table, and a dense layer that learns beside it."""

    def __init__(self, store: Store, modules: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(worker.EmbeddingBag(store, "ads") for _ in range(modules))
        self.linear = nn.Linear(DIM, 1)
        nn.init.constant_(self.linear.weight, 0.3)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch: Batch) -> Tensor:
        """With two modules the first one is used twice: the uses of a row are the same."""
        first, last = self.bags[0], self.bags[-1]
        return (self.linear(first(*batch)).square() + self.linear(last(*batch))).mean()


def train(store: Store, setting: Setting, first: int, last: int) -> Iterator[float]:
    """Losses of the steps ``first`` to below ``last``, resumed where a checkpoint is."""
    model = Model(store, setting.modules)
    sparse = worker.SparseOptimizer(store)
    dense = torch.optim.Adam(model.linear.parameters(), lr=0.01)
    if first:
        step, state = store.resume()
        assert step == first
        model.load_state_dict(state["model"])
        dense.load_state_dict(state["dense"])
        sparse.load_state_dict(state["sparse"])

    def keys(batch: Batch) -> dict[nn.Module, list[Batch]]:
        return {bag: [batch] for bag in model.bags}

    for batch in worker.prefetch(
        BATCHES[first:last], keys, depth=setting.depth, lookahead=setting.lookahead
    ):
        dense.zero_grad()
        loss = model(batch)
        loss.backward()
        sparse.step()
        dense.step()
        yield loss.item()
    parts = {"model": model, "dense": dense, "sparse": sparse}
    store.checkpoint(last, {name: part.state_dict() for name, part in parts.items()})


def run(path: Path, optimizer: Optimizer, setting: Setting) -> tuple[list[float], int]:
    """Losses of all steps, and the digest of all rows after them."""
    table = ps.Table(
        "ads", dim=DIM, optimizer=optimizer, init=ps.Uniform(0.1), dtype=setting.dtype,
        admission=setting.admission,
    )  # fmt: skip
    stops = [0, STEPS] if setting.stop is None else [0, setting.stop, STEPS]
    losses: list[float] = []
    evicted = 0
    for first, last in itertools.pairwise(stops):
        with ps.open(
            path,
            [table],
            ram=setting.ram,
            hbm=setting.hbm,
            threads=setting.threads,
            policy=setting.policy,
            ghost=setting.watched,
        ) as store:
            if setting.watched:
                store.observers.add(Recorder(path / f"{first}.npy", list(store.tables)))
            losses += train(store, setting, first, last)
            store.settle()
            assert store.stacks["ads"].top.pinned == 0
            assert store.check() == []
            digest = store.digest()
            evicted += store.stacks["ads"].top.stats.evicted
    # Else the run proves nothing, or the oracle is none.
    assert (evicted > 0) == (setting.ram != ALL or setting.hbm is not None)
    return losses, digest


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[float], int]]:
    return {
        optimizer.name: run(tmp_path_factory.mktemp("oracle"), optimizer, Setting())
        for optimizer in OPTIMIZERS
    }


SETTINGS = {
    "small RAM": Setting("640KiB"),
    "small RAM, look-ahead": Setting("640KiB", depth=4, threads=2),
    "small RAM, next batch": Setting("640KiB", depth=1),
    "middling RAM": Setting("660KiB", depth=2),
    "two modules": Setting("640KiB", depth=2, modules=2),
    "threads": Setting("640KiB", threads=2),
    "third tier": Setting(ALL, hbm="24KiB"),
    "third tier, look-ahead": Setting("720KiB", hbm="24KiB", depth=4),
    "third tier, modules": Setting("720KiB", hbm="24KiB", depth=1, modules=2, threads=2),
    "a ghost and a recorder": Setting("780KiB", depth=2, watched=True),
    "a stop": Setting("600KiB", depth=2, stop=22),
    "a stop, third tier": Setting("720KiB", hbm="24KiB", depth=4, stop=7),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_no_setting_is_seen_in_a_loss_or_a_row(
    tmp_path: Path,
    optimizer: Optimizer,
    setting: Setting,
    oracles: dict[str, tuple[list[float], int]],
) -> None:
    assert run(tmp_path, optimizer, setting) == oracles[optimizer.name]


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "lru"])
@pytest.mark.parametrize("hbm", [None, "24KiB"])
def test_no_policy_is_seen_in_a_loss_or_a_row(
    tmp_path: Path, policy: str, hbm: str | None, oracles: dict[str, tuple[list[float], int]]
) -> None:
    setting = Setting("720KiB" if hbm else "640KiB", hbm=hbm, depth=2, policy=policy)
    assert run(tmp_path, OPTIMIZERS[1], setting) == oracles[OPTIMIZERS[1].name]


ADMISSIONS = {
    "sketch": ps.CountMin(3, bytes=1 << 16, decay=7),
    "exact": ps.ExactCount(5, bytes=1 << 16),  # a step uses each key twice
    "full": ps.ExactCount(3, bytes=9216),  # of 768 keys in waiting
    "probability": ps.Probability(0.4),
}
ADMITTING = {
    **{name: SETTINGS[name] for name in ("small RAM, look-ahead", "two modules", "threads")},
    **{name: SETTINGS[name] for name in ("third tier, modules", "a stop, third tier")},
    "a stop": Setting("650KiB", depth=2, stop=22),
}


@pytest.fixture(scope="module")
def admitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[float], int]]:
    return {
        kind: run(tmp_path_factory.mktemp("oracle"), OPTIMIZERS[1], admitting(Setting(), kind))
        for kind in ADMISSIONS
    }


def admitting(setting: Setting, kind: str) -> Setting:
    """The setting with an admission, and RAM for its counts where RAM is short."""
    admission = ADMISSIONS[kind]
    more = bytes_held(ps.Table("ads", dim=DIM, admission=admission))
    ram = setting.ram if setting.ram == ALL else str(parse_size(setting.ram) + more)
    return replace(setting, ram=ram, admission=admission)


@pytest.mark.parametrize("kind", ADMISSIONS)
@pytest.mark.parametrize("setting", ADMITTING.values(), ids=ADMITTING)
def test_no_setting_is_seen_in_who_is_admitted(
    tmp_path: Path, kind: str, setting: Setting, admitted: dict[str, tuple[list[float], int]]
) -> None:
    assert run(tmp_path, OPTIMIZERS[1], admitting(setting, kind)) == admitted[kind]


@pytest.mark.parametrize("policy", ["sieve", "lfu", "arc", "w-tinylfu"])
@pytest.mark.parametrize("hbm", [None, "24KiB"])
def test_no_policy_is_seen_in_who_is_admitted(
    tmp_path: Path, policy: str, hbm: str | None, admitted: dict[str, tuple[list[float], int]]
) -> None:
    setting = Setting("760KiB" if hbm else "680KiB", hbm=hbm, depth=2, policy=policy)
    assert run(tmp_path, OPTIMIZERS[1], admitting(setting, "sketch")) == admitted["sketch"]


def test_every_kind_of_admission_changes_who_has_a_row(
    oracles: dict[str, tuple[list[float], int]], admitted: dict[str, tuple[list[float], int]]
) -> None:
    found = [oracles[OPTIMIZERS[1].name], *admitted.values()]
    assert len({digest for _, digest in found}) == len(found)


LOOKING_AHEAD = [
    *((policy, depth, lookahead) for policy in POLICIES for depth, lookahead in ((1, 1), (2, 8))),
    *(("lru", depth, lookahead) for depth, lookahead in ((0, 0), (0, 1), (0, 8), (8, 8), (4, 29))),
]


@pytest.mark.parametrize(("policy", "depth", "lookahead"), LOOKING_AHEAD)
def test_no_look_ahead_is_seen_in_a_loss_or_a_row(
    tmp_path: Path,
    policy: str,
    depth: int,
    lookahead: int,
    oracles: dict[str, tuple[list[float], int]],
) -> None:
    setting = Setting("640KiB", depth=depth, lookahead=lookahead, policy=policy)
    assert run(tmp_path / "two", OPTIMIZERS[1], setting) == oracles[OPTIMIZERS[1].name]
    setting = replace(setting, ram="720KiB", hbm="24KiB", stop=7)
    assert run(tmp_path / "three", OPTIMIZERS[1], setting) == oracles[OPTIMIZERS[1].name]


def test_a_top_tier_of_one_working_set_is_enough(
    tmp_path: Path, oracles: dict[str, tuple[list[float], int]]
) -> None:
    optimizer = ps.Adagrad(lr=0.1)
    width = ps.Table("ads", dim=DIM, optimizer=optimizer).width
    for depth in (0, 4):
        setting = Setting("720KiB", hbm=str(WORKING_SET * 4 * width), depth=depth)
        assert run(tmp_path / str(depth), optimizer, setting) == oracles["adagrad"]


def test_a_stop_with_all_in_ram_is_not_seen(
    tmp_path: Path, oracles: dict[str, tuple[list[float], int]]
) -> None:
    assert run(tmp_path, ps.Adam(lr=0.01), Setting(stop=15)) == oracles["adam"]


TOLERANCE = {"bfloat16": 0.02, "float16": 0.002, "int8": 0.05}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("optimizer", OPTIMIZERS[:4], ids=lambda o: o.name)
def test_narrow_rows_agree_to_a_tolerance(
    tmp_path: Path,
    optimizer: Optimizer,
    dtype: str,
    oracles: dict[str, tuple[list[float], int]],
) -> None:
    losses, _ = run(tmp_path, optimizer, Setting("640KiB", depth=2, dtype=dtype))
    assert losses != oracles[optimizer.name][0]
    np.testing.assert_allclose(losses, oracles[optimizer.name][0], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("hbm", [None, "32MiB"])
def test_a_resumed_run_of_narrow_rows_equals_one_that_went_on(
    tmp_path: Path, dtype: str, hbm: str | None
) -> None:
    """The checkpoint rounds what is resident too."""
    table = ps.Table("ads", dim=DIM, optimizer=ps.Adagrad(lr=0.1), dtype=dtype)
    setting = Setting(dtype=dtype, hbm=hbm)

    def first_part(store: Store) -> list[float]:
        return list(train(store, setting, 0, 12))

    with ps.open(tmp_path / "on", [table], ram=ALL, hbm=hbm, threads=1) as store:
        head = first_part(store)
        tail = list(train(store, replace(setting, depth=1), 12, STEPS))
        undisturbed = head + tail, store.digest()
    with ps.open(tmp_path / "stopped", [table], ram=ALL, hbm=hbm, threads=1) as store:
        head = first_part(store)
    with ps.open(tmp_path / "stopped", [table], ram=ALL, hbm=hbm, threads=1) as store:
        tail = list(train(store, setting, 12, STEPS))
        assert (head + tail, store.digest()) == undisturbed
