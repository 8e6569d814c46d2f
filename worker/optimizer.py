"""SparseOptimizer: the step of a store's tables, as a torch.optim.Optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ps.record import Record, condensed
from ps.tables import Tables
from storage.errors import ConfigError, MismatchError, NonFiniteError
from worker.lookup import anchor

_POLICIES = ("stop", "skip")


class SparseOptimizer(torch.optim.Optimizer):
    """Applies what backward recorded, once for every row of a table however often it was used.

    One parameter group a table: its name, its learning rate (settable, so schedulers work) and its
    count of steps. The group's parameter is the table's anchor, whose grad every backward pass adds
    1 to: what scales it (GradScaler, clipping) scales the table's gradient, and infinity in it
    tells GradScaler to leave the step out. Gradients of several backward passes are summed
    (accumulation); `zero_grad` forgets them.

    on_nan: what to do with NaN or infinity in a gradient: "stop" raises before any row changes,
    "skip" leaves out just the rows it reaches and counts them in ``skipped_rows``.

    Threads: the thread that trains.
    """

    def __init__(self, store: Tables, *, lr: float | None = None, on_nan: str = "stop") -> None:
        if on_nan not in _POLICIES:
            raise ConfigError(f"on_nan: expected one of {', '.join(_POLICIES)}, got {on_nan!r}")
        self.store = store
        self.on_nan = on_nan
        self.skipped_rows = 0
        self.bad_gradients = 0
        groups = [
            {
                "params": [anchor(store, name)],
                "table": name,
                "lr": table.optimizer.lr if lr is None else lr,
                "steps": 0,
            }
            for name, table in store.tables.items()
        ]
        super().__init__(groups, {})

    @property
    def finite(self) -> bool:
        """Whether no recorded gradient has NaN or infinity."""
        return all(record.finite for each in self.store.waiting.values() for record in each)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply what is recorded and forget it; returns what ``closure`` returned, if given.

        Raises: NonFiniteError (with on_nan="stop") and ConfigError (a rate that cannot be meant)
        before any row has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.store.planner.ensure_usable()
        with self.store.stepping():
            self._apply()
            super().zero_grad()
        return loss

    def _apply(self) -> None:
        """The step itself: every table's records, merged, once."""
        self._refuse_bad()
        due = self._due()
        scales = [self._checked_scale(group) for group in due]  # all, before any row changes
        for group, scale in zip(due, scales, strict=True):
            table, records = group["table"], self.store.waiting.pop(group["table"], [])
            group["steps"] += 1
            self.skipped_rows += self.store.apply(
                table, records, lr=float(group["lr"]), step=group["steps"], scale=scale
            )
            self._drop(records)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget what is recorded; the rows' pins go with it."""
        while self.store.waiting:
            self._drop(self.store.waiting.popitem()[1])
        super().zero_grad(set_to_none)

    def norm(self) -> Tensor:
        """2-norm of all recorded gradients, duplicates of a row summed, scaled as the step would.

        Zero-dimensional float64. Replaces the records by their sums, so that a step costs no more.
        Gradients that the step will drop (see `ps.admission`) are part of it.
        """
        total = 0.0
        for group in self._due():
            name = group["table"]
            records = self.store.waiting.get(name, [])
            scale = self._scale(group, len(records))
            total += scale**2 * self._condense(name, records)
            if records:
                group["params"][0].grad.fill_(scale)
        return torch.tensor(total, dtype=torch.float64).sqrt()

    def scale(self, factor: float) -> None:
        """Multiply all recorded gradients by ``factor`` when they are applied."""
        for group in self.param_groups:
            if group["params"][0].grad is not None:
                group["params"][0].grad.mul_(factor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over steps and rates of the tables, in whatever order they were saved.

        Raises: MismatchError when the state is of other tables.
        """
        saved = {group.get("table"): group for group in state_dict["param_groups"]}
        tables = [group["table"] for group in self.param_groups]
        if saved.keys() != set(tables):
            raise MismatchError(
                f"SparseOptimizer: the state is of tables {sorted(map(str, saved))}, expected "
                f"{sorted(tables)}"
            )
        groups = [{**saved[table], "params": [number]} for number, table in enumerate(tables)]
        super().load_state_dict({"state": {}, "param_groups": groups})

    def _checked_scale(self, group: dict[str, Any]) -> float:
        """The factor of this step's gradients. Raises: ConfigError when the step cannot be made."""
        optimizer = self.store.tables[group["table"]].optimizer
        optimizer.hyper(lr=float(group["lr"]), step=group["steps"] + 1)
        return self._scale(group, len(self.store.waiting.get(group["table"], [])))

    def _due(self) -> list[dict[str, Any]]:
        """The groups of tables that have gradients, at some worker."""
        tables = set(self.store.due)
        return [group for group in self.param_groups if group["table"] in tables]

    def _condense(self, name: str, records: list[Record]) -> float:
        """Sum of squares of the merged gradient, which takes the records' place."""
        if not records:
            return self.store.squares(name, None)
        record = condensed(self.store.tables[name].dim, records, self.store.pool)
        self.store.waiting[name] = [record]
        return self.store.squares(name, record)

    def _drop(self, records: list[Record]) -> None:
        for record in records:
            record.drop()

    def _scale(self, group: dict[str, Any], count: int) -> float:
        """What happened to the anchor's grad between backward and step, as a factor."""
        if not count:
            return 1.0
        grad = group["params"][0].grad
        if grad is None:
            raise ConfigError(
                "SparseOptimizer: gradients are recorded, but the anchor's grad was cleared; "
                "call zero_grad() of this optimizer, not of its parameters"
            )
        factor = float(grad)
        return factor / count if torch.isfinite(grad) else 1.0

    def _refuse_bad(self) -> None:
        bad = [
            name
            for name, records in self.store.waiting.items()
            if not all(record.finite for record in records)
        ]
        if not bad:
            return
        self.bad_gradients += 1
        if self.on_nan == "stop":
            self.zero_grad()
            raise NonFiniteError(
                f"table {bad[0]!r}: expected finite gradients, got NaN or infinity; no row has "
                f"changed; lower the learning rate, or go on without those rows by on_nan='skip'"
            )


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], sparse: SparseOptimizer, max_norm: float
) -> Tensor:
    """Scale dense and sparse gradients together so that their joint 2-norm is at most ``max_norm``.

    The factor is that of torch.nn.utils.clip_grad_norm_: max_norm / (norm + 1e-6), at most 1.
    Returns the norm before, zero-dimensional float64.
    """
    given = [parameters] if isinstance(parameters, Tensor) else parameters
    dense = [parameter.grad for parameter in given if parameter.grad is not None]
    squares = [grad.double().square().sum().cpu() for grad in dense]
    total = (sparse.norm().square() + sum(squares)).sqrt()
    factor = max_norm / (float(total) + 1e-6)
    if factor < 1.0:
        for grad in dense:
            grad.mul_(factor)
        sparse.scale(factor)
    return total
