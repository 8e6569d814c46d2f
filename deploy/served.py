"""Served: shard servers as child processes, for benchmarks and for clusters on one machine.

Threads: one owner. Children end with the object, or are killed if they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from deploy.child import Say
from deploy.server import Server

_STOP_SECONDS = 60.0


class Served:
    """``shards`` servers on ports of the system's choice, each with a folder in ``folder``.

    options: of ``terrace serve``, for all of them. say: is given what they say; else it is thrown
    away. restarts: of each.

    Raises: UnavailableError when one does not come up.
    """

    def __init__(
        self,
        folder: Path,
        shards: int,
        options: Sequence[str] = (),
        say: Say | None = None,
        *,
        restarts: int = 0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        places = [(shard, shards) for shard in range(shards)]
        to = say or (lambda line, on_stderr: None)
        self._servers = [Server(folder, place, options, to, restarts=restarts) for place in places]
        try:
            for server in self._servers:
                server.start()
            for server in self._servers:
                server.wait()
        except BaseException:
            self.close()
            raise

    @property
    def ports(self) -> list[int]:
        """Of each."""
        return [server.port for server in self._servers]

    @property
    def addresses(self) -> str:
        """As `ps.connect` takes them."""
        return ",".join(server.address for server in self._servers)

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def revive(self) -> int:
        """Start those again that have died: how many. Raises: as `Server.revive`."""
        return sum(server.revive() for server in self._servers)

    def close(self) -> None:
        """Stop all, and wait for them. Twice is fine."""
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            server.end(_STOP_SECONDS)
