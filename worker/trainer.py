"""Trainer: one training run, from a dataset to a trained model in a store.

Read it top down: `train` is the whole run, `_step` is one batch, `evaluate` the held-out examples.

Several workers (see `worker.group`) each have a trainer, and take the same steps together. Of each
batch a worker has its share; what it adds to the gradient is its part of the gradient of the mean
over the whole batch. Whatever decides how a run goes on (NaN, a wish to stop or for a checkpoint)
counts if one worker has it. Figures are of all examples, and the same at every worker.

Threads: one; the rows of coming batches are fetched by the prefetch thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ps.tables import Tables
from storage.errors import ConfigError, DataError, NonFiniteError
from worker.data.dataset import Dataset
from worker.group import Group
from worker.metrics import ExactAuc, Figures, Metrics, StreamingAuc
from worker.optimizer import SparseOptimizer
from worker.prefetch import prefetch
from worker.recommender import Recommender
from worker.share import Share, turns

_TEST_BATCH = 16384
_LARGEST_RATE = 1e6


@dataclass(frozen=True)
class Schedule:
    """How long and how to train. batch_size: examples a step, of all workers together. steps: of
    the whole run, None for all epochs. checkpoint_every: steps between checkpoints, 0 for none but
    the last. checkpoint_minutes: between checkpoints, by the clock of worker 0; None for no such.
    depth: batches made resident ahead. lookahead: batches whose keys are known ahead, at
    least ``depth``; None is no more than that.
    """

    batch_size: int = 1024
    epochs: int = 1
    steps: int | None = None
    depth: int = 2
    lookahead: int | None = None
    checkpoint_every: int = 1000
    checkpoint_minutes: float | None = None
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
        if self.checkpoint_minutes is not None and not 0 < self.checkpoint_minutes < math.inf:
            raise ConfigError(
                f"checkpoint_minutes: expected more than 0, got {self.checkpoint_minutes}"
            )
        if self.lookahead is not None and self.lookahead < self.depth:
            raise ConfigError(
                f"--lookahead: expected at least the {self.depth} batches of --prefetch, "
                f"got {self.lookahead}"
            )


@dataclass
class Progress:
    """Where a run is. step: batches trained on since the very start; losses: of this process's
    time, each the mean over a batch of all workers. bad_steps: those with a gradient that was not
    finite. checkpoints, checkpoint_seconds: made by this process, and how long that took.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    examples: int = 0
    bad_steps: int = 0
    checkpoints: int = 0
    checkpoint_seconds: float = 0.0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    metrics: Metrics = field(default_factory=lambda: Metrics(StreamingAuc()))

    @property
    def examples_per_s(self) -> float:
        """Examples trained on since this process began, at all workers, by second of training."""
        return self.examples / self.seconds if self.seconds else 0.0


class Trainer:
    """Trains ``model`` on ``dataset``; the store holds the rows and, in checkpoints, all the rest.

    stop: set it (from a signal handler, say) to end after the running step; of several workers one
    is enough, and all end after the same step. stopped: whether the run ended so. group: of the
    workers, None for this one alone. With more, every method is collective, and so is making a
    trainer: layers start as those of rank 0.
    """

    def __init__(
        self,
        store: Tables,
        model: Recommender,
        dataset: Dataset,
        schedule: Schedule,
        group: Group | None = None,
    ) -> None:
        self.store = store
        self.model = model
        self.dataset = dataset
        self.schedule = schedule
        self.group = group or Group()
        self.progress = Progress()
        self.stop = self.stopped = False
        self.dense = torch.optim.Adam(model.parameters(), lr=schedule.dense_lr)
        self.sparse = SparseOptimizer(store, on_nan=schedule.on_nan)
        self._forward = self.group.wrap(model)
        self._most = -(-schedule.batch_size // self.group.world)
        self._saved = time.monotonic()

    def resume(self) -> int:
        """Go back to the store's newest checkpoint; returns its step."""
        step, state = self.store.resume()
        self.model.load_state_dict(state["model"])
        self.dense.load_state_dict(state["dense"])
        self.sparse.load_state_dict(state["sparse"])
        cursor = state["cursor"]
        self.progress = Progress(step=step, epoch=cursor["epoch"], batch=cursor["batch"])
        return step

    def checkpoint(self) -> int:
        """Make a checkpoint here, between steps, of all workers: its step."""
        began = time.monotonic()
        self.store.checkpoint(self.progress.step, self._state())
        self._saved = time.monotonic()
        self.progress.checkpoints += 1
        self.progress.checkpoint_seconds += self._saved - began
        return self.progress.step

    def train(self, watch: Callable[[Progress], None] = lambda progress: None) -> Progress:
        """Train to the end of the schedule, or until ``stop``; ends with a checkpoint.

        watch: called after every step.
        """
        self.model.train()
        (self.stopped,) = self.group.any(self.stop)
        saved, began = -1, time.perf_counter()
        with closing(self._shares()) as shares:
            for share in shares:
                self._step(share)
                self.progress.seconds = time.perf_counter() - began
                watch(self.progress)
                if self._agree():
                    saved = self.checkpoint()
        if saved != self.progress.step:
            self.checkpoint()
        return self.progress

    @torch.no_grad()
    def evaluate(self) -> Figures | None:
        """Figures on the held-out examples, None where there are none; changes nothing.

        Workers take turns at whole batches, so that figures are those of one worker to the bit.
        """
        self.model.eval()
        metrics = Metrics(ExactAuc())
        batches = self.dataset.test(_TEST_BATCH)
        for batch in turns(batches, rank=self.group.rank, world=self.group.world):
            logits = self.model(batch)
            metrics.update(*self.group.gather(logits, batch.labels, most=_TEST_BATCH))
        self.model.train()
        return metrics.figures if metrics.figures.examples else None

    def _step(self, share: Share) -> None:
        """Forward, backward, both optimizers, and the figures of one batch."""
        logits = self._forward(share.batch)
        loss = _loss(logits, share.batch.labels)
        self.dense.zero_grad()
        # Alone the weight is 1.0 and changes no bit. Without examples the loss is NaN, but there
        # is nothing for it to reach: gradients are 0.
        self.group.backward(loss * share.weight)
        self._check_gradients()
        self.sparse.step()
        self.dense.step()
        self._count(logits.detach(), share)

    def _count(self, logits: Tensor, share: Share) -> None:
        """The figures of the step, from all workers' logits."""
        logits, labels = self.group.gather(logits, share.batch.labels, most=self._most)
        if len(logits) != share.total:
            raise DataError(
                f"step {self.progress.step + 1}: expected the shares of a batch of {share.total} "
                f"examples, got {len(logits)}; do all workers read the same data?"
            )
        self.progress.losses.append(float(_loss(logits, labels)))
        self.progress.metrics.update(logits, labels)
        self.progress.examples += share.total
        self.progress.step += 1
        self.progress.batch += 1

    def _check_gradients(self) -> None:
        """NaN or infinity in a layer's gradient: stop, or leave the layers out of this step.

        The rows' gradients are checked by `SparseOptimizer`, with the same choice; it knows of its
        own worker's only.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        bad, bad_rows = self.group.any(
            not all(bool(gradient.isfinite().all()) for gradient in gradients),
            not self.sparse.finite,
        )
        stops = self.schedule.on_nan == "stop"
        if stops and (bad or (bad_rows and self.sparse.finite)):
            self.progress.bad_steps += 1
            self.sparse.zero_grad()
            raise NonFiniteError(
                f"step {self.progress.step + 1}: expected finite gradients, got NaN or infinity; "
                f"nothing has changed and the last checkpoint is good; lower the learning rates, "
                f"or go on without such gradients by --on-nan skip"
            )
        if bad:
            self.progress.bad_steps += 1
            self.dense.zero_grad()

    def _shares(self) -> Generator[Share, None, None]:
        """This worker's shares of the batches from the data cursor on, until the schedule ends."""
        rank, world = self.group.rank, self.group.world
        while self.progress.epoch < self.schedule.epochs and not self._done:
            batches = self.dataset.train(self.schedule.batch_size, start=self.progress.batch)
            ahead = prefetch(
                (Share.of(batch, rank=rank, world=world) for batch in batches),
                keys=lambda share: {self.model.bag: [(share.batch.ids, share.batch.offsets)]},
                depth=self.schedule.depth,
                lookahead=self.schedule.lookahead,
            )
            with closing(ahead):
                for share in ahead:
                    yield share
                    if self._done:
                        return
            self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0

    @property
    def _done(self) -> bool:
        steps = self.schedule.steps
        return self.stopped or (steps is not None and self.progress.step >= steps)

    def _agree(self) -> bool:
        """Whether a checkpoint is due after this step; and whether it was the last, in ``stopped``.

        In one place, after the step, as every worker has to come to the same answers.
        """
        minutes = self.schedule.checkpoint_minutes
        late = minutes is not None and time.monotonic() - self._saved >= 60 * minutes
        self.stopped, wanted = self.group.any(
            self.stop, self.store.wants_checkpoint or (late and self.group.rank == 0)
        )
        every = self.schedule.checkpoint_every
        return wanted or (every > 0 and self.progress.step % every == 0)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "dense": self.dense.state_dict(),
            "sparse": self.sparse.state_dict(),
            "cursor": {"epoch": self.progress.epoch, "batch": self.progress.batch},
        }


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of (n,) logits."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.device))
