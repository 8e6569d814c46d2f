"""Piece: a stretch of an access trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.keys import Keys

PIECE_KEYS = 1 << 20
"""Keys of a piece, about: large against a call, small against the memory of a laptop."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Accesses one after the other. keys: (n,) uint64. batches: (n,) int64, rising, the number of
    the batch of each; None where the source has no batches. The arrays are the reader's to keep.
    """

    keys: Keys
    batches: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def first(self, count: int) -> Piece:
        """The first ``count`` accesses, views."""
        return Piece(self.keys[:count], None if self.batches is None else self.batches[:count])
