"""Layout: which arrays a policy is made of, so that their bytes are known before they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LINKS = np.dtype((np.int32, 2))
"""Of one node's links, see `storage.policies.links`."""


@dataclass(frozen=True)
class Layout:
    """by_position: of each such array its type and how many entries come before position 0's.

    fixed: of each other array its type and its length. Arrays are zero at first.
    """

    by_position: Mapping[str, tuple[Any, int]]
    fixed: Mapping[str, tuple[Any, int]] = field(default_factory=dict)

    @property
    def bytes_per_position(self) -> int:
        """What one position more costs."""
        return sum(np.dtype(kind).itemsize for kind, _ in self.by_position.values())

    @property
    def fixed_bytes(self) -> int:
        """Bytes that stay when the cache shrinks."""
        arrays = (*self.fixed.values(), *self.by_position.values())
        return sum(np.dtype(kind).itemsize * count for kind, count in arrays)
