"""Launch: which of the processes of one training this is, as torchrun tells each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from storage.errors import ConfigError

_MEETING = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """rank: from 0 to world - 1. world: workers on all machines. local_rank: on this machine.

    round: the same for all workers that started together, another one after torchrun started them
    again; "" alone. It names a start within one run id, and torchrun's own run id is "none" unless
    ``--standalone`` or ``--rdzv-id`` gives one: two launches by hand may have the same round.
    local_world: workers on this machine, as far as it is known.

    Raises: ConfigError.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    round: str = ""
    local_world: int = 1

    def __post_init__(self) -> None:
        if self.world < 1:
            raise ConfigError(f"WORLD_SIZE: expected 1 worker or more, got {self.world}")
        if not 1 <= self.local_world <= self.world:
            raise ConfigError(
                f"LOCAL_WORLD_SIZE: expected 1 to {self.world}, WORLD_SIZE, got {self.local_world}"
            )
        for name, value in (("RANK", self.rank), ("LOCAL_RANK", self.local_rank)):
            if not 0 <= value < self.world:
                raise ConfigError(
                    f"{name}: expected 0 to {self.world - 1}, below WORLD_SIZE, got {value}"
                )

    @staticmethod
    def of(environment: Mapping[str, str]) -> Launch:
        """What torchrun (or who does its work) put into the environment; alone where nobody did.

        Raises: ConfigError naming the variable that is missing or cannot be meant.
        """
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return Launch()
        rank, world = (_number(environment, name) for name in ("RANK", "WORLD_SIZE"))
        if world == 1:
            return Launch(rank, world, _number(environment, "LOCAL_RANK", rank))
        address, port = (_given(environment, name) for name in _MEETING)
        run = environment.get("TORCHELASTIC_RUN_ID", f"{address}:{port}")
        again = _number(environment, "TORCHELASTIC_RESTART_COUNT", 0)
        here = _number(environment, "LOCAL_WORLD_SIZE", 1)
        return Launch(rank, world, _number(environment, "LOCAL_RANK", rank), f"{run}/{again}", here)

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that speaks for all: rank 0."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this worker: "cuda" is its own GPU of this machine, others as they are."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.world > 1 else name


def _given(environment: Mapping[str, str], name: str) -> str:
    if name not in environment:
        raise ConfigError(
            f"{name}: expected in the environment beside RANK or WORLD_SIZE, found nothing; "
            f"start several workers by torchrun"
        )
    return environment[name]


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in environment and default is not None:
        return default
    text = _given(environment, name)
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}: expected a whole number, got {text!r}") from None
