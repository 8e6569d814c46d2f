"""Row optimizers: what a table's rows learn by, as values.

An optimizer says how much state a row carries, which constants one step needs, and how it is
written into a store's format file. The arithmetic is in `ps/update.py` (host) and `ps/device.py`
(tensors on any device), which both take the constants that `hyper` makes, so that corrections
by step are computed once, in float64, in one place.

Names, arguments and defaults are those of torch.optim where it has the optimizer. The learning rate
may change from step to step: ``lr`` here is the default that a schedule starts from.

Duplicates of a row in a batch are summed before an optimizer sees them; rows that a step does not
touch do not change (no decay of momenta: "lazy").

Threads: values without state, free to share.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError

HYPER_WIDTH = 8
"""Room for constants in what `Optimizer.hyper` returns."""

_TINIEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Optimizer(ABC):
    """What every row optimizer has.

    ``name`` is how format files and the command line call it, ``kind`` how kernels do; neither is
    ever given to another optimizer. Raises ConfigError for arguments outside their range.
    """

    name: ClassVar[str]
    kind: ClassVar[int]

    lr: float

    def __post_init__(self) -> None:
        for field in fields(self):
            self._make_float(field.name)
        self._check("lr", least=0.0)

    @abstractmethod
    def state_width(self, dim: int) -> int:
        """Floats of state that a row of ``dim`` floats carries."""

    @property
    def initial_state(self) -> float:
        """What every float of a new row's state is."""
        return 0.0

    def hyper(self, *, lr: float | None = None, step: int = 1) -> NDArray[np.float32]:
        """The constants of one step's kernel: (8,) float32, in an order the kernel knows by kind.

        lr: the learning rate of this step; None is the optimizer's own. step: 1 for the first, of
        the optimizer and not of a row, as torch.optim.SparseAdam counts. Computed in float64 and
        rounded once. Raises ConfigError for a rate or a step that cannot be meant.
        """
        rate = self.lr if lr is None else float(lr)
        if not self._least_lr() <= rate <= _LARGEST:
            raise ConfigError(
                f"{self.name}: lr is {rate} at step {step}, expected a finite number "
                f"{'above 0' if self._least_lr() else 'of at least 0'}; correct the schedule"
            )
        if not 1 <= step < 2**32:
            raise ConfigError(
                f"{self.name}: step is {step}, expected 1 to 2**32 - 1; the first step is 1"
            )
        constants = self._constants(rate, step)
        return np.array(constants + (0.0,) * (HYPER_WIDTH - len(constants)), np.float32)

    def describe(self) -> dict[str, Any]:
        """The optimizer as JSON values; `optimizer_from` makes an equal one of them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        return {"name": self.name, **plain}

    @abstractmethod
    def _constants(self, lr: float, step: int) -> tuple[float, ...]: ...

    def _least_lr(self) -> float:
        return 0.0

    def _make_float(self, name: str) -> None:
        # Floats of Python only: they compare and are written to JSON without loss, NumPy's do not.
        value = getattr(self, name)
        try:
            plain = tuple(map(float, value)) if name == "betas" else float(value)
        except (TypeError, ValueError):
            expected = "a pair of numbers" if name == "betas" else "a number"
            raise ConfigError(f"{self.name}: {name} is {value!r}, expected {expected}") from None
        object.__setattr__(self, name, plain)

    def _check(self, name: str, *, least: float, included: bool = True) -> None:
        value = getattr(self, name)
        # Kernels compute in float32: what rounds to 0 or to infinity there is no better than it.
        with np.errstate(over="ignore", under="ignore"):
            rounded = np.float32(value)
        if not (np.isfinite(rounded) and (rounded >= least if included else rounded > least)):
            raise ConfigError(
                f"{self.name}: {name} is {value}, expected a finite float32 "
                f"{'of at least' if included else 'above'} {least}"
            )


@dataclass(frozen=True)
class SGD(Optimizer):
    """w -= lr (g + weight_decay w), as torch.optim.SGD without momentum. No state.

    ``weight_decay`` acts on a row when a batch touches it, not on every step.
    """

    name: ClassVar[str] = "sgd"
    kind: ClassVar[int] = 0

    lr: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("weight_decay", least=0.0)

    def state_width(self, dim: int) -> int:
        """No state."""
        return 0

    def _constants(self, lr: float, step: int) -> tuple[float, ...]:
        return lr, self.weight_decay


@dataclass(frozen=True)
class _Accumulating(Optimizer):
    """What the two Adagrads share: a sum of squares, and a rate that decays with it."""

    lr: float = 1e-2
    lr_decay: float = 0.0
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("lr_decay", least=0.0)
        # Above 0, though torch takes 0: a gradient of 0 on a new row would be 0 / 0.
        self._check("eps", least=0.0, included=False)
        self._check("initial_accumulator_value", least=0.0)

    @property
    def initial_state(self) -> float:
        """The value that a new row's sums of squares start from."""
        return self.initial_accumulator_value

    def _constants(self, lr: float, step: int) -> tuple[float, ...]:
        return lr / (1 + (step - 1) * self.lr_decay), self.eps


@dataclass(frozen=True)
class Adagrad(_Accumulating):
    """s += g²; w -= lr_t g / (√s + eps); lr_t = lr / (1 + (step - 1) lr_decay).

    State: s, D floats. Source: torch.optim.Adagrad.
    """

    name: ClassVar[str] = "adagrad"
    kind: ClassVar[int] = 1

    def state_width(self, dim: int) -> int:
        """One sum of squares for each float."""
        return dim


@dataclass(frozen=True)
class RowWiseAdagrad(_Accumulating):
    """s += mean(g²) over the row; w -= lr_t / (√s + eps) g; lr_t as Adagrad's.

    State: s, one float. Source: the row-wise sparse Adagrad of DLRM (Naumov et al. 2019).
    """

    name: ClassVar[str] = "rowwise_adagrad"
    kind: ClassVar[int] = 2

    def state_width(self, dim: int) -> int:
        """One sum of squares for the row."""
        return 1


@dataclass(frozen=True)
class _Moments(Optimizer):
    """What the two Adams share: decay rates of the two moments."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(
                f"{self.name}: betas are {self.betas}, expected two numbers from 0 to below 1"
            )
        self._check("eps", least=0.0, included=False)

    def _corrections(self, step: int) -> tuple[float, float]:
        return 1 - self.betas[0] ** step, 1 - self.betas[1] ** step


@dataclass(frozen=True)
class Adam(_Moments):
    """Lazy Adam: the moments of a row decay only when a batch touches it.

    m += (1 - β₁)(g - m); v += (1 - β₂)(g² - v);
    w -= lr √(1 - β₂^step) / (1 - β₁^step) m / (√v + eps).
    State: m, then v, 2 D floats. Source: torch.optim.SparseAdam, eps outside the correction too.
    """

    name: ClassVar[str] = "adam"
    kind: ClassVar[int] = 3

    def state_width(self, dim: int) -> int:
        """Two moments for each float."""
        return 2 * dim

    def _constants(self, lr: float, step: int) -> tuple[float, ...]:
        first, second = self._corrections(step)
        return lr * math.sqrt(second) / first, 1 - self.betas[0], 1 - self.betas[1], self.eps


@dataclass(frozen=True)
class RowWiseAdam(_Moments):
    """Adam with one second moment a row.

    m += (1 - β₁)(g - m); v += (1 - β₂)(mean(g²) - v) over the row;
    w -= lr / (1 - β₁^step) / (√(v / (1 - β₂^step)) + eps) m.
    State: m, then v, D + 1 floats. Source: FBGEMM's partial row-wise Adam, eps inside as there.
    """

    name: ClassVar[str] = "rowwise_adam"
    kind: ClassVar[int] = 4

    def state_width(self, dim: int) -> int:
        """A first moment for each float and a second one for the row."""
        return dim + 1

    def _constants(self, lr: float, step: int) -> tuple[float, ...]:
        first, second = self._corrections(step)
        return lr / first, 1 - self.betas[0], 1 - self.betas[1], self.eps, 1 / second


@dataclass(frozen=True)
class FTRL(Optimizer):
    """Follow the regularised leader, per coordinate.

    n' = n + g²; z += g - (√n' - √n) / lr w; w = 0 where |z| <= l1, else
    -(z - sign(z) l1) / ((beta + √n') / lr + l2). State: z, then n, 2 D floats.
    Source: McMahan et al., "Ad click prediction: a view from the trenches" (KDD 2013), Algorithm 1;
    ``lr`` is its α. The weight is a function of z and n, so a new row's first update forgets most
    of its initial value: start such tables at zero or close to it.
    """

    name: ClassVar[str] = "ftrl"
    kind: ClassVar[int] = 5

    lr: float = 1e-2
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("lr", least=0.0, included=False)
        # Above 0: a coordinate whose gradients were all 0 would be 0 / 0 without it.
        self._check("beta", least=0.0, included=False)
        self._check("l1", least=0.0)
        self._check("l2", least=0.0)

    def state_width(self, dim: int) -> int:
        """A linear term and a sum of squares for each float."""
        return 2 * dim

    def _least_lr(self) -> float:
        return _TINIEST  # the update divides by the rate

    def _constants(self, lr: float, step: int) -> tuple[float, ...]:
        return 1 / lr, self.beta, self.l1, self.l2


OPTIMIZERS: dict[str, type[Optimizer]] = {
    each.name: each for each in (SGD, Adagrad, RowWiseAdagrad, Adam, RowWiseAdam, FTRL)
}
"""Every row optimizer by name."""


def optimizer_from(description: Mapping[str, Any]) -> Optimizer:
    """The optimizer that `Optimizer.describe` described; arguments left out have their default.

    Raises ConfigError for an unknown name or argument, or a value outside its range.
    """
    arguments = dict(description)
    name = arguments.pop("name", None)
    chosen = OPTIMIZERS.get(name) if isinstance(name, str) else None
    if chosen is None:
        raise ConfigError(f"optimizer {name!r} is unknown, expected one of {', '.join(OPTIMIZERS)}")
    known = [field.name for field in fields(chosen)]
    if unknown := sorted(set(arguments) - set(known)):
        raise ConfigError(
            f"{name}: unknown arguments {', '.join(unknown)}, expected some of {', '.join(known)}; "
            "was this written by a newer version?"
        )
    return chosen(**arguments)
