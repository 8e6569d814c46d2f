"""Loan: a batch's rows, which other workers have, from its staging to its last use.

Rows come when they are used, and again when a step has changed them since.

Threads: made by the prefetch thread, filled by the one that trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from ps.cluster.route import Route
from ps.workingset import Asked, Hold, Part, WorkingSet


class Loan(WorkingSet):
    """The parts of a batch at this worker. "Positions" in them are keys: they name rows elsewhere.

    route: of the batch. own: what this worker's store has pinned for all of them, held until this
    is let go of. rows: what came, (U, D) by table. version: of the tables when it came, -1 before.
    """

    def __init__(
        self,
        asked: Mapping[str, Asked],
        route: Route,
        own: WorkingSet,
        released: Callable[[WorkingSet], None],
    ) -> None:
        self._own: Hold | None = own.hold()
        self.route, self.own = route, own
        self.rows: dict[str, torch.Tensor] = {}
        self.version = -1
        parts = {
            name: Part(one.keys, one.keys.view(np.int64), one.counts, one.inverses)
            for name, one in asked.items()
        }
        super().__init__(parts, released)

    def give_back(self) -> None:
        """This worker's rows may leave again. Twice is fine."""
        held, self._own = self._own, None
        if held is not None:
            held.drop()
