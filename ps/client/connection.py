"""Connection: how a worker is connected to shards; what `ps.connect` makes of what it is given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ps.client.client import Client
from ps.client.credentials import Credentials
from ps.client.identity import Identity
from ps.client.remote import RemoteStore
from ps.launch import Launch
from ps.settings import check_device
from ps.table import Table
from storage.errors import ConfigError
from storage.policy import DEFAULT, check_policy

MODES = ("sync", "async")

_JOB = re.compile(r"[A-Za-z0-9_.-]{1,48}")


@dataclass(frozen=True)
class Connection:
    """device, size: of this worker's copies of rows, in bytes; on_hbm: they were given as ``hbm``.
    mode: one of "sync", "async". staleness: steps that copies may be old. job: name of the
    training. timeout_seconds: how long a server that is away is waited for. push_bytes: of changes
    that are kept. threads: for kernels. policy: of eviction.

    Raises: ConfigError.
    """

    device: torch.device
    size: int
    on_hbm: bool
    mode: str
    staleness: int
    job: str
    timeout_seconds: float
    push_bytes: int
    threads: int
    policy: str = DEFAULT

    def __post_init__(self) -> None:
        check_device(self.device)
        check_policy(self.policy)
        if self.device.type != "cpu" and not self.on_hbm:
            raise ConfigError(
                f"device {self.device}: expected hbm=, the budget of its tier, such as '4GiB'"
            )
        if self.mode not in MODES:
            raise ConfigError(f"mode: expected one of {', '.join(MODES)}, got {self.mode!r}")
        if self.staleness < 0 or (self.mode == "sync" and self.staleness):
            raise ConfigError(
                f"staleness: expected 0 or more, and 0 in mode sync, got {self.staleness}"
            )
        if not _JOB.fullmatch(self.job):
            raise ConfigError(f"job: expected 1 to 48 of A-Z a-z 0-9 _ . -, got {self.job!r}")
        if not 0 < self.timeout_seconds <= 86400:
            raise ConfigError(
                f"timeout_seconds: expected more than 0, at most a day, got {self.timeout_seconds}"
            )


def connect_store(
    servers: str | Sequence[str],
    tables: Sequence[Table],
    launch: Launch,
    credentials: Credentials,
    connection: Connection,
) -> RemoteStore:
    """A store over these servers. Raises: as `ps.connect`."""
    addresses = servers.split(",") if isinstance(servers, str) else list(servers)
    addresses = [address.strip() for address in addresses if address.strip()]
    names = [table.name for table in tables]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"tables: expected one or more with names of their own, got {names}")
    if connection.mode == "sync" and launch.world > 1:
        raise ConfigError(
            f"mode sync: expected one worker, got {launch.world}; use mode='async' for several"
        )
    who = Identity(connection.job, launch.rank, launch.world, launch.round)
    client = Client(
        addresses, tables, who, credentials.channel,
        timeout_seconds=connection.timeout_seconds, push_bytes=connection.push_bytes,
    )  # fmt: skip
    try:
        return RemoteStore(
            client, tables, staleness=connection.staleness, size=connection.size,
            device=connection.device, policy=connection.policy, threads=connection.threads,
        )  # fmt: skip
    except BaseException:
        client.close()
        raise
