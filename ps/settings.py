"""Settings: how a store is opened; what `ps.open` makes of what the user gave."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from storage.errors import ConfigError
from storage.policy import DEFAULT, check_policy

DURABILITIES = ("strict", "interval", "checkpoint")


def as_device(device: str | torch.device) -> torch.device:
    """The torch device of this name. Raises: ConfigError."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device: expected 'cpu' or 'cuda', got {device!r}") from error


def check_device(device: torch.device) -> None:
    """Raises: ConfigError for one that cannot be used here."""
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected 'cpu' or 'cuda', got {str(device)!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: expected a CUDA device, found none; use device='cpu'")


@dataclass(frozen=True)
class Settings:
    """ram, hbm, disk: budgets in bytes; hbm None is no third tier, disk None as far as it goes.

    device: of the top tier. threads: for kernels. policy: of eviction. durability: one of "strict",
    "interval" (a cut every ``interval_seconds``), "checkpoint". compact_bytes_per_second: what
    compaction reads and writes in the background. ghost: estimate hit rates at other sizes of RAM.

    Raises: ConfigError.
    """

    ram: int
    hbm: int | None = None
    disk: int | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a value, never changed
    threads: int = 1
    policy: str = DEFAULT
    durability: str = "checkpoint"
    interval_seconds: float = 1.0
    compact_bytes_per_second: int = 64 << 20
    ghost: bool = False

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.device.type != "cpu" and self.hbm is None:
            raise ConfigError(
                f"device {self.device}: expected hbm=, the budget of its tier, such as '4GiB'"
            )
        if self.durability not in DURABILITIES:
            raise ConfigError(
                f"durability: expected one of {', '.join(DURABILITIES)}, got {self.durability!r}"
            )
        check_policy(self.policy)
        if not 0 < self.interval_seconds < 3600:
            raise ConfigError(
                f"interval_seconds: expected more than 0 and less than 3600, got "
                f"{self.interval_seconds}"
            )
        if self.threads < 1:
            raise ConfigError(f"threads: expected 1 or more, got {self.threads}")
