"""Doorkeeper: which keys of one table get a row now, decided at each step.

It is asked when a step applies its gradients, about the keys of the step that have no row, and
counts their uses then. So what it knows depends on the steps made, and on nothing else: not on
batches that were read ahead, nor on forward passes without a step, nor on what tiers hold.
Evaluation never asks. Keys that have a row are not counted: they take no room.

Its counts are part of checkpoints, and of the cuts that `Store.cut` and `Store.close` make; a cut
between (durability "interval" or "strict") is of rows alone, for counts are the larger part. After
a crash, a store that is opened and does not resume has the newest counts that were saved.

Threads: any; a lock of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ps.admission import Counted, Probability
from ps.table import Table
from storage.chance import wins
from storage.errors import CorruptError
from storage.initial import stream
from storage.rows import Counts, Keys

_COPIES = 3
"""Of the counts, while a checkpoint is made: as tensors, as facts, in the open transaction."""


class Doorkeeper:
    """See the module's docstring; of ``table``, which has an admission.

    ``changed``: there is something that was not saved.
    """

    def __init__(self, table: Table) -> None:
        assert table.admission is not None
        self.table = table
        self.changed = False
        self._admission = table.admission
        self._counter = table.admission.counter() if isinstance(table.admission, Counted) else None
        self._stream = stream(table.seed, table.name)
        self._lock = threading.Lock()
        self._steps = 0
        self._last = -1  # the optimizer's step that was last asked about
        self._keys_admitted = self._keys_refused = self._gradients_dropped = 0

    def admits(self, keys: Keys, counts: Counts, step: int) -> NDArray[np.bool_]:
        """(U,) bool: which of a step's keys that have no row get one now.

        keys: (U,) uint64, unique, in any order. counts: (U,) int32, uses of each, 1 or more. step:
        the optimizer's; one that comes in pieces is still one.
        """
        with self._lock:
            self.changed = True
            begins, self._last = step != self._last, step
            self._steps += begins
            admitted = self._decide(keys, counts, step, begins)
            count = int(np.count_nonzero(admitted))
            self._keys_admitted += count
            self._keys_refused += len(keys) - count
            self._gradients_dropped += int(counts[~admitted].sum())
            return admitted

    def forget(self, keys: Keys) -> None:
        """These rows were deleted; their keys start anew, as far as the kind can do that."""
        with self._lock:
            if self._counter is not None:
                self.changed = True
                self._counter.forget(keys)

    def save(self) -> dict[str, Any]:
        """A copy of what is known now, for `restore`: a tree of arrays and JSON values."""
        with self._lock:
            arrays = {} if self._counter is None else self._counter.arrays()
            copies = {name: array.copy() for name, array in arrays.items()}
            return {"kind": self._admission.kind, "steps": self._steps, "counts": copies}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what `save` gave, arrays as tensors. Raises: CorruptError."""
        with self._lock:
            try:
                if saved["kind"] != self._admission.kind:
                    raise ValueError(f"kind {saved['kind']!r}, expected {self._admission.kind!r}")
                arrays = {name: tensor.numpy() for name, tensor in saved["counts"].items()}
                if self._counter is not None:
                    self._counter.restore(**arrays)
                self._steps = int(saved["steps"])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise CorruptError(
                    f"table {self.table.name!r}: the counts of its keys cannot be read ({error}); "
                    f"run terrace check --repair, or restore a backup"
                ) from error

    def report(self) -> dict[str, Any]:
        """What is declared and what was decided since the store was opened, as JSON values.

        keys_admitted, keys_refused: keys of each step, summed up. gradients_dropped: by use.
        """
        with self._lock:
            return {
                **self._admission.describe(),
                "keys_admitted": self._keys_admitted,
                "keys_refused": self._keys_refused,
                "gradients_dropped": self._gradients_dropped,
            }

    def _decide(self, keys: Keys, counts: Counts, step: int, begins: bool) -> NDArray[np.bool_]:
        how = self._admission
        if isinstance(how, Probability):
            return wins(self._stream, keys, counts, step, how.probability)
        assert isinstance(how, Counted) and self._counter is not None
        if how.decay is not None and begins and self._steps % how.decay == 0:
            self._counter.halve()
        admitted: NDArray[np.bool_] = self._counter.add(keys, counts) >= how.times
        return admitted


def bytes_held(table: Table) -> int:
    """RAM that a table's doorkeeper takes at most; 0 without one."""
    return 0 if table.admission is None else (1 + _COPIES) * table.admission.bytes_held


def doorkeepers(tables: Iterable[Table], saved: Mapping[str, Any]) -> dict[str, Doorkeeper]:
    """One for each table that has an admission, by name. saved: what each saved, where it did.

    Raises: CorruptError when that is of something else.
    """
    found = {table.name: Doorkeeper(table) for table in tables if table.admission is not None}
    for name, doorkeeper in found.items():
        if name in saved:
            doorkeeper.restore(saved[name])
    return found
