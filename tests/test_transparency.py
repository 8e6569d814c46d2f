"""The first promise: losses and rows have the same bits wherever the rows lie.

A table that never leaves RAM is the oracle. Everything else that a user may choose - the sizes of
the tiers, a third tier, look-ahead, threads, a stop in the middle - must not be seen in a result.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from ps.tables import Tables
from storage.budget import parse_size
from storage.policy import POLICIES
from storage.recorder import Recorder
from tests.deploy.serving import Process, process_at
from tests.ps.client.shards import SECONDS, connect, serving

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

    def __init__(self, store: Tables, modules: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(worker.EmbeddingBag(store, "ads") for _ in range(modules))
        self.linear = nn.Linear(DIM, 1)
        nn.init.constant_(self.linear.weight, 0.3)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch: Batch) -> Tensor:
        """With two modules the first one is used twice: the uses of a row are the same."""
        first, last = self.bags[0], self.bags[-1]
        return (self.linear(first(*batch)).square() + self.linear(last(*batch))).mean()


def train(store: Tables, setting: Setting, first: int, last: int) -> Iterator[float]:
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


# -- rows on shards ------------------------------------------------------------------------------

# A worker with little more than one working set, and shards of which each holds a part of its rows.
FEW, SHARD_RAM = (
    f"{int(WORKING_SET * 1.4 * (4 * DIM + 60))}",
    {1: 640 << 10, 2: 600 << 10, 4: 580 << 10},
)


def run_served(
    path: Path, optimizer: Optimizer, setting: Setting, shards: int
) -> tuple[list[float], int]:
    """As `run`, over shards. setting: its ``ram`` is the worker's."""
    table = ps.Table(
        "ads", dim=DIM, optimizer=optimizer, init=ps.Uniform(0.1), admission=setting.admission
    )
    more = bytes_held(table) if setting.admission else 0
    stops = [0, STEPS] if setting.stop is None else [0, setting.stop, STEPS]
    losses: list[float] = []
    with serving(path, shards, ram=SHARD_RAM[shards] + more, interval=0.05) as served:
        for first, last in itertools.pairwise(stops):
            with connect(
                served, [table], ram=setting.ram, threads=setting.threads, policy=setting.policy
            ) as store:
                losses += train(store, setting, first, last)
                store.settle()
                top = store.stacks["ads"].top
                assert top.pinned == 0 and top.check() == []
                assert (top.stats.evicted > 0) == (setting.ram != ALL)
                digest = store.digest()
        for one in served:
            assert one.shard is not None and one.shard.check() == []
            if not setting.admission and setting.stop is None:
                assert one.shard.store.stacks["ads"].top.stats.evicted > 0
    return losses, digest


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_no_shards_are_seen_in_a_loss_or_a_row(
    tmp_path: Path,
    optimizer: Optimizer,
    shards: int,
    oracles: dict[str, tuple[list[float], int]],
) -> None:
    setting = Setting(FEW, depth=2 if shards == 2 else 0)
    assert run_served(tmp_path, optimizer, setting, shards) == oracles[optimizer.name]


SERVED = {
    "all copies in RAM, look-ahead": (Setting(depth=2), 1),
    "look-ahead": (Setting(FEW, depth=4, lookahead=8), 4),
    "two modules, threads": (Setting(FEW, depth=2, modules=2, threads=2), 2),
    "another policy": (Setting(FEW, depth=2, policy="lfu"), 2),
    "a stop": (Setting(FEW, depth=2, stop=22), 2),
}


@pytest.mark.parametrize(("setting", "shards"), SERVED.values(), ids=SERVED)
def test_no_setting_of_a_worker_over_shards_is_seen(
    tmp_path: Path, setting: Setting, shards: int, oracles: dict[str, tuple[list[float], int]]
) -> None:
    assert run_served(tmp_path, OPTIMIZERS[2], setting, shards) == oracles[OPTIMIZERS[2].name]


# What two shards with a sketch each count is not what one counts: other keys share its places.
@pytest.mark.parametrize(
    ("kind", "shards"),
    [*itertools.product(ADMISSIONS, [1]), ("exact", 2), ("probability", 2)],
)
@pytest.mark.parametrize("stop", [None, 7])
def test_no_shards_are_seen_in_who_is_admitted(
    tmp_path: Path,
    kind: str,
    shards: int,
    stop: int | None,
    admitted: dict[str, tuple[list[float], int]],
) -> None:
    setting = Setting(FEW, depth=2, stop=stop, admission=ADMISSIONS[kind])
    assert run_served(tmp_path, OPTIMIZERS[1], setting, shards) == admitted[kind]


def test_two_tables_over_shards_are_those_of_one_store(tmp_path: Path) -> None:
    tables = [
        ps.Table("ads", dim=DIM, optimizer=ps.Adagrad(lr=0.1)),
        ps.Table("users", dim=3, optimizer=ps.Adam(lr=0.01), init=ps.Normal(0.1)),
    ]

    def both(store: Tables, depth: int) -> tuple[list[float], int]:
        ads, users = (worker.EmbeddingBag(store, table.name, mode="mean") for table in tables)
        sparse, losses = worker.SparseOptimizer(store), []
        keys = lambda batch: {ads: [batch], users: [batch]}  # noqa: E731
        for number, batch in enumerate(worker.prefetch(BATCHES, keys, depth=depth)):
            loss = ads(*batch).square().mean()
            if number % 3:  # else one of them makes no step
                loss = loss + users(*batch).sum()
            loss.backward()
            sparse.step()
            losses.append(loss.item())
        return losses, store.digest()

    with ps.open(tmp_path / "one", tables, ram=ALL, threads=1) as store:
        expected = both(store, 0)
    for shards, depth in ((2, 2), (4, 0)):
        with (
            serving(tmp_path / str(shards), shards, ram=3 << 19) as served,
            connect(served, tables, ram=str(2 * int(FEW))) as remote,
        ):
            assert both(remote, depth) == expected


class Cluster:
    """Two shards as processes, which end as the test likes. words: options of each."""

    def __init__(self, path: Path, words: Sequence[str]) -> None:
        self._path, self._words = path, words
        self._open = [self._at(shard, 0) for shard in range(2)]
        self.shards: list[Process] = []

    def __enter__(self) -> Cluster:
        self.shards = [process.__enter__() for process in self._open]
        return self

    def __exit__(self, *raised: object) -> None:
        for process in self._open:
            process.__exit__(None, None, None)

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{shard.report['port']}" for shard in self.shards]

    def kill(self, shard: int) -> None:
        """And start it again at the same port, once it is gone."""
        port = self.shards[shard].report["port"]
        self.shards[shard].end(signal.SIGKILL)
        self._open[shard].__exit__(None, None, None)
        self._open[shard] = self._at(shard, port)
        self.shards[shard] = self._open[shard].__enter__()

    def pause(self, shard: int, seconds: float) -> None:
        child = self.shards[shard].child
        child.send_signal(signal.SIGSTOP)
        threading.Timer(seconds, child.send_signal, (signal.SIGCONT,)).start()

    def _at(self, shard: int, port: int) -> Any:
        return process_at(
            self._path / str(shard), "--shard", f"{shard}/2", "--listen", f"127.0.0.1:{port}",
            *self._words,
        )  # fmt: skip


def train_disturbed(
    cluster: Cluster, setting: Setting, disturb: Callable[[int], None]
) -> tuple[list[float], int]:
    """disturb: called after each loss, in the middle of a step."""
    table = ps.Table("ads", dim=DIM, optimizer=OPTIMIZERS[2], init=ps.Uniform(0.1))
    with ps.connect(
        cluster.addresses, [table], ram=setting.ram, threads=1, timeout_seconds=6 * SECONDS,
        launch=ps.Launch(),
    ) as store:  # fmt: skip
        losses = []
        for number, loss in enumerate(train(store, setting, 0, STEPS)):
            losses.append(loss)
            disturb(number)
        return losses, store.digest()


@pytest.mark.parametrize(
    "durability", ["strict", pytest.param("interval", marks=pytest.mark.stress)]
)
def test_a_shard_that_is_killed_and_one_that_stands_still_are_not_seen(
    tmp_path: Path, durability: str, oracles: dict[str, tuple[list[float], int]]
) -> None:
    words = ("--durability", durability, "--interval", "0.1")
    with Cluster(tmp_path, words) as cluster:

        def disturb(number: int) -> None:
            if number == 9:
                restarting.append(threading.Thread(target=cluster.kill, args=(1,)))
                restarting[0].start()  # while training goes on
            if number == 20:
                restarting[0].join(3 * SECONDS)
                cluster.pause(0, 2.0)

        restarting: list[threading.Thread] = []
        found = train_disturbed(cluster, Setting(FEW, depth=2), disturb)
        assert found == oracles[OPTIMIZERS[2].name]


@pytest.mark.stress
@pytest.mark.parametrize("durability", ["strict", "interval"])
def test_shards_that_are_killed_again_and_again_are_not_seen(
    tmp_path: Path, durability: str, oracles: dict[str, tuple[list[float], int]]
) -> None:
    words = ("--durability", durability, "--interval", "0.1")
    with Cluster(tmp_path, words) as cluster:
        restarting: list[threading.Thread] = []

        def disturb(number: int) -> None:
            if number % 5 == 2:
                if restarting:
                    restarting[-1].join(3 * SECONDS)
                restarting.append(threading.Thread(target=cluster.kill, args=(number % 2,)))
                restarting[-1].start()

        found = train_disturbed(cluster, Setting(FEW, depth=2), disturb)
        restarting[-1].join(3 * SECONDS)
        assert found == oracles[OPTIMIZERS[2].name]


@pytest.mark.stress
def test_a_shard_that_stands_still_for_half_a_minute_is_not_seen(
    tmp_path: Path, oracles: dict[str, tuple[list[float], int]]
) -> None:
    with Cluster(tmp_path, ("--durability", "interval")) as cluster:
        pause = {5: 0, 17: 1}
        found = train_disturbed(
            cluster, Setting(FEW, depth=2),
            lambda number: cluster.pause(pause[number], 30.0) if number in pause else None,
        )  # fmt: skip
        assert found == oracles[OPTIMIZERS[2].name]
