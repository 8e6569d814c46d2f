"""Health: what a shard says of itself to those who ask whether it is well (grpc.health.v1).

A shard is loading, then serving, and in the end draining, which is final. Where its disk is full it
still answers pulls, so only the service ``terrace.v1.Shard/writes`` is not serving then; ``""`` and
``terrace.v1.Shard`` are. All three are not serving while it is loading or draining.

Threads: any; a lock guards the state.
"""

from __future__ import annotations

import enum
import threading
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

SHARD = "terrace.v1.Shard"
WRITES = f"{SHARD}/writes"


class State(enum.Enum):
    """What a shard does; the value is the one word that `/readyz` says."""

    LOADING = "loading"
    SERVING = "serving"
    DISK_FULL = "disk-full"
    DRAINING = "draining"

    @property
    def reads(self) -> bool:
        """Whether pulls are answered."""
        return self in (State.SERVING, State.DISK_FULL)

    @property
    def writes(self) -> bool:
        """Whether pushes and writes are taken."""
        return self is State.SERVING


class Health:
    """The state of one shard, and the servicer that tells it. Loading at first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._servicer = HealthServicer()
        self._state = State.LOADING
        self._tell()

    @property
    def state(self) -> State:
        """What the shard does now."""
        return self._state

    def change(self, state: State) -> None:
        """Say that the shard does this now. Nothing comes after draining: what does is ignored.

        So the disk that has room again while a shard drains does not send clients to it.
        """
        with self._lock:
            if self._state is not State.DRAINING:
                self._state = state
                self._tell()

    def add_to(self, server: Any) -> None:
        """Serve grpc.health.v1, Check and Watch, on a `grpc.Server` that is not yet started."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def add_checks_to(self, server: Any) -> None:
        """Serve grpc.health.v1 without Watch, whose streams would hold what bounds the calls."""
        health_pb2_grpc.add_HealthServicer_to_server(_Checks(self._servicer), server)

    def _tell(self) -> None:
        for service, well in (
            ("", self._state.reads),
            (SHARD, self._state.reads),
            (WRITES, self._state.writes),
        ):
            self._servicer.set(service, _STATUS[well])


_STATUS = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


class _Checks(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers Check as another servicer does; Watch is UNIMPLEMENTED, as the protocol allows."""

    def __init__(self, servicer: HealthServicer) -> None:
        self._servicer = servicer

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._servicer.Check(request, context)
