"""The trainer: an interrupted run equals one that was not, and evaluation changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ps
from storage.errors import ConfigError, NonFiniteError
from tests.storage.digesting import digest
from worker.data import open_dataset
from worker.data.dataset import Dataset
from worker.recommender import PRESETS, Recommender, preset
from worker.trainer import Schedule, Trainer

DATA = "synthetic:rows=30000,examples=6000,features=5,dense=3,bag=1-3,zipf=1.05"
SCHEDULE = Schedule(batch_size=200, checkpoint_every=7)


def _trainer(store: ps.Store, dataset: Dataset, schedule: Schedule) -> Trainer:
    torch.manual_seed(0)
    shape = PRESETS["small"].architecture(len(dataset.dense_names), len(dataset.feature_names))
    return Trainer(store, Recommender(store, "t", shape, seed=3), dataset, schedule)


def _open(path: Path, ram: str = "3MiB") -> ps.Store:
    return ps.open(path, [ps.Table("t", dim=16)], ram=ram, threads=1)


def _undisturbed(path: Path, schedule: Schedule) -> tuple[list[float], int]:
    with _open(path, ram="64MiB") as store:
        losses = _trainer(store, open_dataset(DATA), schedule).train().losses
        return losses, store.digest()


@pytest.mark.parametrize("epochs", [1, 2])
def test_resumed_run_equals_an_undisturbed_one(tmp_path: Path, epochs: int) -> None:
    schedule = replace(SCHEDULE, epochs=epochs)
    losses, digest = _undisturbed(tmp_path / "whole", schedule)
    with _open(tmp_path / "cut") as store:
        trainer = _trainer(store, open_dataset(DATA), schedule)

        def stop(progress: object) -> None:
            trainer.stop = trainer.progress.step == 16

        assert trainer.train(stop).losses == losses[:16]
    with _open(tmp_path / "cut") as store:
        trainer = _trainer(store, open_dataset(DATA), schedule)
        assert trainer.resume() == 16
        assert trainer.train().losses == losses[16:]
        assert store.digest() == digest


def test_run_that_died_between_checkpoints_goes_back_to_the_last(tmp_path: Path) -> None:
    losses, digest = _undisturbed(tmp_path / "whole", SCHEDULE)
    with _open(tmp_path / "cut") as store:
        trainer = _trainer(store, open_dataset(DATA), SCHEDULE)

        def die(progress: object) -> None:
            if trainer.progress.step == 17:
                raise RuntimeError("died")

        with pytest.raises(RuntimeError, match="died"):
            trainer.train(die)
    with _open(tmp_path / "cut") as store:
        trainer = _trainer(store, open_dataset(DATA), SCHEDULE)
        assert trainer.resume() == 14
        assert trainer.train().losses == losses[14:]
        assert store.digest() == digest


def test_steps_bound_the_whole_run(tmp_path: Path) -> None:
    with _open(tmp_path) as store:
        progress = _trainer(store, open_dataset(DATA), replace(SCHEDULE, steps=5)).train()
        assert (progress.step, len(progress.losses), store.checkpoints) == (5, 5, [5])


@pytest.mark.parametrize(("minutes", "made"), [(1e-9, 5), (60.0, 1)])
def test_checkpoints_by_the_clock(tmp_path: Path, minutes: float, made: int) -> None:
    schedule = replace(SCHEDULE, steps=5, checkpoint_every=0, checkpoint_minutes=minutes)
    with _open(tmp_path) as store:
        progress = _trainer(store, open_dataset(DATA), schedule).train()
        assert (progress.checkpoints, store.checkpoints[-1]) == (made, 5)
        assert progress.checkpoint_seconds > 0
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="checkpoint_minutes: expected more than 0"):
            replace(SCHEDULE, checkpoint_minutes=wrong)


def test_training_learns_the_planted_model(tmp_path: Path) -> None:
    data = "synthetic:rows=500,examples=12000,features=4,dense=3,zipf=1.2"
    with _open(tmp_path) as store:
        trainer = _trainer(store, open_dataset(data), replace(SCHEDULE, epochs=2))
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        assert before is not None
        assert after is not None
        assert after.auc > 0.6 > before.auc - 0.05
        assert after.logloss < before.logloss


def test_evaluation_changes_nothing(tmp_path: Path) -> None:
    with _open(tmp_path) as store:
        trainer = _trainer(store, open_dataset(DATA), replace(SCHEDULE, steps=10))
        trainer.train()
        stack = store.stacks["t"]
        store.settle()
        before = (digest(stack.top), stack.report())
        assert trainer.evaluate() == trainer.evaluate()
        assert (digest(stack.top), stack.report()["first_seen"]) == (
            before[0], before[1]["first_seen"],
        )  # fmt: skip
        for after, was in zip(stack.report()["tiers"], before[1]["tiers"], strict=True):
            assert {k: v for k, v in after.items() if k != "bytes_read"} == {
                k: v for k, v in was.items() if k != "bytes_read"
            }


@pytest.mark.parametrize("log", ["criteo_kaggle", "avazu", "adult/adult.data.gz"])
def test_real_click_logs_train_end_to_end(tmp_path: Path, shared_data: Path, log: str) -> None:
    dataset = open_dataset(str(shared_data / log))
    with _open(tmp_path, ram="8MiB") as store:
        trainer = _trainer(store, dataset, Schedule(batch_size=128, depth=2))
        trainer.train()
        figures = trainer.evaluate()
        assert figures is not None
        assert figures.examples > 300
        assert figures.auc > 0.55
        assert store.check() == []


def test_schedule_refuses_what_cannot_be_meant() -> None:
    for wrong in ({"batch_size": 0}, {"epochs": 0}, {"steps": -1}, {"depth": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Schedule(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="small"):
        preset("huge")


def test_gradient_that_is_not_finite_stops_or_is_left_out(tmp_path: Path) -> None:
    for on_nan in ("stop", "skip"):
        with _open(tmp_path / on_nan) as store:
            trainer = _trainer(store, open_dataset(DATA), replace(SCHEDULE, steps=8, on_nan=on_nan))

            def poison(progress: object, trainer: Trainer = trainer) -> None:
                bias = next(trainer.model.dlrm.parameters())
                bias.data.fill_(float("nan") if trainer.progress.step == 3 else 0.01)

            if on_nan == "stop":
                with pytest.raises(NonFiniteError, match="step 4"):
                    trainer.train(poison)
                assert trainer.progress.step == 3
            else:
                assert trainer.train(poison).bad_steps == 1
                assert trainer.progress.step == 8
                assert trainer.sparse.skipped_rows > 0
                assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
