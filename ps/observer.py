"""Observers: who is told of every batch that a store has made resident.

They look on: results do not depend on them. Evaluation stages nothing, so they do not see it.
Threads: told by the thread that stages, one batch after the other; closed with the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ps.workingset import Asked
from storage.rows import Keys


class Observer(Protocol):
    """What is told of batches; it keeps no reference to the arrays and never writes to them."""

    def staged(self, requests: Mapping[str, Sequence[Keys]], unique: Mapping[str, Keys]) -> None:
        """A batch is resident.

        requests: by table, the keys of each lookup, (N,) uint64, with duplicates, in batch order.
        unique: by table, (U,) uint64, in order of first occurrence.
        """
        ...

    def close(self) -> None:
        """The store closes. Twice is fine."""
        ...


class Observers:
    """All observers of a store. Closes those that were added."""

    def __init__(self) -> None:
        self._all: list[Observer] = []

    def add(self, observer: Observer | None) -> None:
        """Tell this one too (None: nobody), from the next batch on. Not while one is staged."""
        if observer is not None:
            self._all.append(observer)

    def staged(self, asked: Mapping[str, Asked]) -> None:
        """Tell all of them, in the order in which they were added."""
        if self._all:
            requests = {name: [one.keys[i] for i in one.inverses] for name, one in asked.items()}
            unique = {name: one.keys for name, one in asked.items()}
            for observer in self._all:
                observer.staged(requests, unique)

    def close(self) -> None:
        """Close all of them."""
        for observer in self._all:
            observer.close()
