"""Admission: which keys of a table earn a row, as the user declares it.

A key that has not been admitted has no row: it has its initial value whenever it is looked up, its
gradients are dropped, and nothing of it is ever written. From the step on in which it is admitted
its row is trained like any other. A row that was written or imported is there, and so admitted,
whatever was counted. `ps.doorkeeper` decides, step by step, and counts what it decided.

The kinds: `CountMin` and `ExactCount` admit a key at its nth use, the one in about half a MiB for
any number of keys, the other exactly for a bounded number; `Probability` keeps nothing and admits
each use with a chance. Counts may decay: every ``decay`` steps all are halved, so that a key that
has not come for long starts lower again (the reset of TinyLFU, by Einziger, Friedman and Manes,
2017). Like the rest of a `Table`, what is declared is fixed when a store is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from storage.errors import ConfigError
from storage.sketch import LEAST_BYTES as LEAST_SKETCH
from storage.sketch import MOST_COUNT, Sketch
from storage.tally import LEAST_BYTES as LEAST_TALLY
from storage.tally import Tally

_MOST_BYTES = 1 << 40


Counter = Sketch | Tally
"""How often keys came."""


@dataclass(frozen=True)
class Admission(ABC):
    """How keys of a table earn a row. Each kind is a frozen value of JSON numbers."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def bytes_held(self) -> int:
        """Bytes of its counts."""

    def describe(self) -> dict[str, Any]:
        """The value as JSON; ``admission_from`` takes it back."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Counted(Admission):
    """By the number of uses: `CountMin` and `ExactCount`, which say what the fields mean."""

    times: int
    bytes: int = 1 << 19
    decay: int | None = None
    least_bytes: ClassVar[int]

    def __post_init__(self) -> None:
        _check(self, "times", 1, MOST_COUNT)
        _check(self, "bytes", self.least_bytes, _MOST_BYTES)
        if self.decay is not None:
            _check(self, "decay", 1, 2**32)

    @property
    def bytes_held(self) -> int:
        """Bytes of its counts."""
        return self.bytes

    @abstractmethod
    def counter(self) -> Counter:
        """An empty counter."""


@dataclass(frozen=True)
class CountMin(Counted):
    """At the ``times``-th use, by a sketch that may take a key for a more frequent one.

    times: 1 to 255; uses in training, duplicates in a batch included. bytes: of the sketch, 65,536
    or more; with 1 byte (of ``times`` from 4 on 2, from 16 on 4) for each key that waits, or has
    waited since counts decayed, one new key in six seems to have come before, with twice as many
    one in forty (see `storage.sketch`). It has a size of its own and not a share of the RAM budget,
    since results must not depend on budgets. decay: steps after
    which counts are halved, None for never. A deleted key keeps its count until it has decayed.
    Raises: ConfigError.
    """

    kind: ClassVar[str] = "sketch"
    least_bytes: ClassVar[int] = LEAST_SKETCH

    def counter(self) -> Counter:
        """An empty one."""
        return Sketch(self.bytes, self.times)


@dataclass(frozen=True)
class ExactCount(Counted):
    """At the ``times``-th use, exactly, while the keys in waiting fit: see `storage.tally`.

    times: 1 to 255; uses in training, duplicates in a batch included. bytes: of the counts, 9,216
    or more; 12 a key that waits. When they are full, all are halved, and keys used once since then
    are forgotten. decay: as in `CountMin`. A deleted key starts from 0. Raises: ConfigError.
    """

    kind: ClassVar[str] = "exact"
    least_bytes: ClassVar[int] = LEAST_TALLY

    def counter(self) -> Counter:
        """An empty one."""
        return Tally(self.bytes, self.times)


@dataclass(frozen=True)
class Probability(Admission):
    """Each use of a key without a row is a draw that admits it with ``probability``.

    So a key is admitted after 1 / probability uses on average (as PERSIA's admit_probability).
    Draws are hashes of seed, table, key and step, and keep nothing. Raises: ConfigError.
    """

    probability: float
    kind: ClassVar[str] = "probability"

    def __post_init__(self) -> None:
        value = self.probability
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise ConfigError(
                f"Probability(probability={value!r}), expected more than 0 and at most 1"
            )
        object.__setattr__(self, "probability", float(value))

    @property
    def bytes_held(self) -> int:
        """Bytes of its counts."""
        return 0


ADMISSIONS: dict[str, type[Admission]] = {
    kind.kind: kind for kind in (CountMin, ExactCount, Probability)
}
"""The kinds by name."""


def admission_from(description: Mapping[str, Any]) -> Admission:
    """The value that ``describe`` made ``description`` of. Raises: ConfigError."""
    kind = ADMISSIONS.get(str(description.get("kind")))
    if kind is None:
        raise ConfigError(
            f"admission of kind {description.get('kind')!r}, expected one of "
            f"{', '.join(ADMISSIONS)}"
        )
    expected = ["kind", *(field.name for field in fields(kind))]
    if sorted(description) != sorted(expected):
        raise ConfigError(
            f"admission {dict(description)}, expected exactly the fields {', '.join(expected)}"
        )
    return kind(**{name: description[name] for name in expected[1:]})


def _check(value: Admission, name: str, least: int, most: int) -> None:
    given = getattr(value, name)
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most:
        raise ConfigError(f"{type(value).__name__}({name}={given!r}), expected {least} to {most}")
