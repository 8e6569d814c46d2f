"""Rows on their way between tiers: the one noun that every tier understands.

A leaf module: it imports nothing of ours, so nobody has a reason to import sideways.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Positions = NDArray[np.int64]
Counts = NDArray[np.int32]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of rows, owned by whoever holds it (always copies, never views of a tier).

    keys: (U,) uint64, unique.
    values: (U, W) float32: the embedding, then the optimizer state.
    steps: (U,) uint32: the optimizer step of each row's last apply, 0 for none.
    dirty: (U,) bool: the tier below does not hold this version.
    """

    keys: Keys
    values: Floats
    steps: NDArray[np.uint32]
    dirty: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Rows:
        """Copy of the rows that ``chosen`` (a mask or indices) names, in its order."""
        return Rows(self.keys[chosen], self.values[chosen], self.steps[chosen], self.dirty[chosen])

    @staticmethod
    def empty(count: int, width: int) -> Rows:
        """``count`` rows of ``width`` floats: keys and values not set, step 0, clean."""
        return Rows(
            np.empty(count, np.uint64),
            np.empty((count, width), np.float32),
            np.zeros(count, np.uint32),
            np.zeros(count, np.bool_),
        )
