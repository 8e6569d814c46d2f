"""Datasets: labelled examples that can be read in the same order again and again.

A dataset is deterministic: the same bytes (or the same specification) give the same batches, on
any machine and whatever the batch size, so a data cursor (batches consumed) is enough to go on
after an interruption. Threads: an iterator belongs to one thread at a time; several iterators of
one dataset may be open at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from storage.errors import ConfigError
from worker.data.batch import Batch, rebatch


class Dataset(ABC):
    """Examples in two parts, one to train on and one held out to test with.

    ``name`` says what it is in a progress line; ``dense_names`` has I names and ``feature_names``
    F, in the order of a batch's columns and bags.
    """

    name: str
    dense_names: tuple[str, ...]
    feature_names: tuple[str, ...]

    @property
    @abstractmethod
    def train_examples(self) -> int | None:
        """Examples of one epoch, or None where only a whole pass over the data would tell."""

    @property
    def bad_lines(self) -> int:
        """Different unreadable lines (or labels) passed over so far; 0 where one stops reading."""
        return 0

    def train(self, batch_size: int, *, start: int = 0) -> Iterator[Batch]:
        """One epoch in batches of ``batch_size`` examples; the last may be smaller.

        start: batches to pass over. Those from there on equal the batches of an undisturbed pass.

        Raises ConfigError for a size below 1 or a start below 0, and while iterating DataError
        for data that cannot be read.
        """
        _check(batch_size, start)
        return rebatch(self._read_train(start * batch_size), batch_size)

    def test(self, batch_size: int) -> Iterator[Batch]:
        """The held-out examples, in the same order every time; none when nothing is held out.

        Raises as ``train`` does.
        """
        _check(batch_size, 0)
        return rebatch(self._read_test(), batch_size)

    @abstractmethod
    def _read_train(self, first: int) -> Iterator[Batch]:
        """The training examples from number ``first`` on, in blocks of any sizes."""

    @abstractmethod
    def _read_test(self) -> Iterator[Batch]:
        """The held-out examples in blocks of any sizes."""


def _check(batch_size: int, start: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch size must be 1 or more, got {batch_size}")
    if start < 0:
        raise ConfigError(f"start must be 0 batches or more, got {start}")
