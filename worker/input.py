"""Input: the call forms of torch.nn.EmbeddingBag, brought to one: accesses and where bags start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import ConfigError
from storage.keys import as_keys
from storage.rows import Floats, Keys


@dataclass(frozen=True, slots=True)
class Bags:
    """Accesses of one call, those of padding left out.

    keys: (N,) uint64. starts: (bags + 1,) int64. kept: (N,) int64, which of the given accesses
    these are, or None for all.
    """

    keys: Keys
    starts: NDArray[np.int64]
    kept: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def bag_of(self) -> NDArray[np.int32]:
        """(N,) int32: the bag of each access."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.starts))

    def weights(self, given: Tensor | None) -> Floats:
        """(N,) float32 of the weights given with the call, (0,) for none."""
        if given is None:
            return np.empty(0, np.float32)
        flat = given.detach().to("cpu", torch.float32).contiguous().view(-1).numpy()
        return flat if self.kept is None else flat[self.kept]


def bags_of(
    ids: Tensor, offsets: Tensor | None, *, include_last_offset: bool, padding_idx: int | None
) -> Bags:
    """Bags of one call. ids: (N,) integers with offsets (bags,), or (bags, L) without.

    Raises: ConfigError for other forms, offsets that fall, or end beyond the ids.
    """
    keys = as_keys(ids)
    if ids.dim() == 2:
        if offsets is not None:
            raise ConfigError("ids are 2-D, so each row is a bag; expected no offsets")
        starts = np.arange(ids.shape[0] + 1, dtype=np.int64) * ids.shape[1]
    elif ids.dim() == 1 and offsets is not None:
        starts = _starts(offsets, len(keys), include_last_offset)
    else:
        raise ConfigError(
            f"expected ids of 1 dimension with offsets, or of 2 without, got {ids.dim()} "
            f"{'without' if offsets is None else 'with'} offsets"
        )
    return _without_padding(keys, starts, padding_idx)


def _starts(offsets: Tensor, count: int, include_last_offset: bool) -> NDArray[np.int64]:
    given = offsets.detach().cpu().numpy().astype(np.int64, copy=False)
    starts = given if include_last_offset else np.append(given, np.int64(count))
    sound = len(starts) > 0 and starts[0] == 0 and starts[-1] <= count
    if not sound or (np.diff(starts) < 0).any():
        raise ConfigError(
            f"offsets: expected a rising sequence from 0 to at most {count}, the number of ids"
        )
    return starts


def _without_padding(keys: Keys, starts: NDArray[np.int64], padding: int | None) -> Bags:
    used = int(starts[-1])
    if padding is None:
        return Bags(keys[:used], starts, None if used == len(keys) else np.arange(used))
    real = keys[:used] != np.uint64(padding % 2**64)
    kept = np.flatnonzero(real)
    before = np.concatenate(([0], np.cumsum(real)))
    return Bags(keys[kept], before[starts].astype(np.int64), kept)
