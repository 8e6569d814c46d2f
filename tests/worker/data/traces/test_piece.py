"""Pieces: a part is a view with its batches."""

from __future__ import annotations

import numpy as np

from worker.data.traces.piece import Piece


def test_the_first_accesses_keep_their_batches() -> None:
    piece = Piece(np.arange(5, dtype=np.uint64), np.array([0, 0, 1, 1, 2]))
    part = piece.first(3)
    assert len(part) == 3 and part.keys.tolist() == [0, 1, 2]
    assert part.batches is not None and part.batches.tolist() == [0, 0, 1]
    assert Piece(piece.keys).first(2).batches is None
