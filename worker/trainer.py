"""Trainer: one training run, from a dataset to a trained model in a store.

Read it top down: `train` is the whole run, `_step` is one batch, `evaluate` the held-out examples.

Threads: one; the rows of coming batches are fetched by the prefetch thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ps.tables import Tables
from storage.errors import ConfigError, NonFiniteError
from worker.data.batch import Batch
from worker.data.dataset import Dataset
from worker.metrics import ExactAuc, Figures, Metrics, StreamingAuc
from worker.optimizer import SparseOptimizer
from worker.prefetch import prefetch
from worker.recommender import Recommender

_TEST_BATCH = 16384
_LARGEST_RATE = 1e6


@dataclass(frozen=True)
class Schedule:
    """How long and how to train. steps: of the whole run, None for all epochs. checkpoint_every:
    steps between checkpoints, 0 for none but the last. depth: batches made resident ahead.
    lookahead: batches whose keys are known ahead, at least ``depth``; None is no more than that.
    """

    batch_size: int = 1024
    epochs: int = 1
    steps: int | None = None
    depth: int = 2
    lookahead: int | None = None
    checkpoint_every: int = 1000
    on_nan: str = "stop"
    dense_lr: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not 0 <= self.dense_lr <= _LARGEST_RATE:  # NaN is neither
            raise ConfigError(f"dense_lr: expected 0 to {_LARGEST_RATE:g}, got {self.dense_lr}")
        for name in ("steps", "depth", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name}: expected 0 or more, got {value}")
        if self.lookahead is not None and self.lookahead < self.depth:
            raise ConfigError(
                f"--lookahead: expected at least the {self.depth} batches of --prefetch, "
                f"got {self.lookahead}"
            )


@dataclass
class Progress:
    """Where a run is. step: batches trained on since the very start; losses: of this process.
    bad_steps: those with a gradient that was not finite.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    examples: int = 0
    bad_steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    metrics: Metrics = field(default_factory=lambda: Metrics(StreamingAuc()))

    @property
    def examples_per_s(self) -> float:
        """Examples trained on by this process, by second of training."""
        return self.examples / self.seconds if self.seconds else 0.0


class Trainer:
    """Trains ``model`` on ``dataset``; the store holds the rows and, in checkpoints, all the rest.

    stop: set it (from a signal handler, say) to end after the running step.
    """

    def __init__(
        self, store: Tables, model: Recommender, dataset: Dataset, schedule: Schedule
    ) -> None:
        self.store = store
        self.model = model
        self.dataset = dataset
        self.schedule = schedule
        self.progress = Progress()
        self.stop = False
        self.dense = torch.optim.Adam(model.parameters(), lr=schedule.dense_lr)
        self.sparse = SparseOptimizer(store, on_nan=schedule.on_nan)
        self._loss = nn.BCEWithLogitsLoss()

    def resume(self) -> int:
        """Go back to the store's newest checkpoint; returns its step."""
        step, state = self.store.resume()
        self.model.load_state_dict(state["model"])
        self.dense.load_state_dict(state["dense"])
        self.sparse.load_state_dict(state["sparse"])
        cursor = state["cursor"]
        self.progress = Progress(step=step, epoch=cursor["epoch"], batch=cursor["batch"])
        return step

    def train(self, watch: Callable[[Progress], None] = lambda progress: None) -> Progress:
        """Train to the end of the schedule, or until ``stop``; ends with a checkpoint.

        watch: called after every step.
        """
        self.model.train()
        saved, began = -1, time.perf_counter()
        with closing(self._batches()) as batches:
            for batch in batches:
                self._step(batch)
                every = self.schedule.checkpoint_every
                due = every and self.progress.step % every == 0
                if due or self.store.wants_checkpoint:
                    saved = self._checkpoint()
                self.progress.seconds = time.perf_counter() - began
                watch(self.progress)
        if saved != self.progress.step:
            self._checkpoint()
        return self.progress

    @torch.no_grad()
    def evaluate(self) -> Figures | None:
        """Figures on the held-out examples, None where there are none; changes nothing."""
        self.model.eval()
        metrics = Metrics(ExactAuc())
        for batch in self.dataset.test(_TEST_BATCH):
            metrics.update(self.model(batch), batch.labels)
        self.model.train()
        return metrics.figures if metrics.figures.examples else None

    def _step(self, batch: Batch) -> None:
        """Forward, backward, both optimizers, and the figures of one batch."""
        logits = self.model(batch)
        loss = self._loss(logits, batch.labels.to(logits.device))
        self.dense.zero_grad()
        loss.backward()
        self._check_dense()
        self.sparse.step()
        self.dense.step()
        self.progress.losses.append(float(loss.detach()))
        self.progress.metrics.update(logits.detach(), batch.labels)
        self.progress.examples += batch.size
        self.progress.step += 1
        self.progress.batch += 1

    def _check_dense(self) -> None:
        """NaN or infinity in a layer's gradient: stop, or leave the layers out of this step.

        The rows' gradients are checked by `SparseOptimizer`, with the same choice.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            return
        self.progress.bad_steps += 1
        if self.schedule.on_nan == "stop":
            self.sparse.zero_grad()
            raise NonFiniteError(
                f"step {self.progress.step + 1}: expected finite gradients, got NaN or infinity; "
                f"nothing has changed and the last checkpoint is good; lower the learning rates, "
                f"or go on without such gradients by --on-nan skip"
            )
        self.dense.zero_grad()

    def _batches(self) -> Generator[Batch, None, None]:
        """Batches from the data cursor on, their rows resident, until the schedule ends."""
        while self.progress.epoch < self.schedule.epochs and not self._done:
            ahead = prefetch(
                self.dataset.train(self.schedule.batch_size, start=self.progress.batch),
                keys=lambda batch: {self.model.bag: [(batch.ids, batch.offsets)]},
                depth=self.schedule.depth,
                lookahead=self.schedule.lookahead,
            )
            with closing(ahead):
                for batch in ahead:
                    yield batch
                    if self._done:
                        return
            self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0

    @property
    def _done(self) -> bool:
        steps = self.schedule.steps
        return self.stop or (steps is not None and self.progress.step >= steps)

    def _checkpoint(self) -> int:
        self.store.checkpoint(self.progress.step, self._state())
        return self.progress.step

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "dense": self.dense.state_dict(),
            "sparse": self.sparse.state_dict(),
            "cursor": {"epoch": self.progress.epoch, "batch": self.progress.batch},
        }
