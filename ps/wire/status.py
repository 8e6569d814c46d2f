"""Status: errors of a shard as gRPC statuses, and back: the only place that knows both.

The status code is for people and proxies; what the other side raises again is named by the trailing
metadata ``terrace-error``, since gRPC has one code for several things (a queue that is full and a
message that is too long are both RESOURCE_EXHAUSTED). A test fails when an error of
`storage.errors` is in no row of the table.

Threads: pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from storage import errors
from storage.errors import (
    ClosedError,
    ConfigError,
    CorruptError,
    DataError,
    DiskFullError,
    FencedError,
    KeyRangeError,
    LockedError,
    LostError,
    MismatchError,
    NonFiniteError,
    OverloadedError,
    RefusedError,
    ShardError,
    StoreError,
    TerraceError,
    UnavailableError,
    WorkingSetError,
)

MOST_DETAILS = 2048
"""Bytes: gRPC drops what comes with more than 8 KiB of metadata, and may write a byte as three."""

ERROR, RETRY, NEEDED = "terrace-error", "terrace-retry-ms", "terrace-needed-bytes"
"""Keys of trailing metadata."""

Code = grpc.StatusCode


class ReopenError(ShardError):
    """The shard does not know the session since it was started; open it again and go on."""


CODES: dict[type[TerraceError], grpc.StatusCode] = {
    KeyRangeError: Code.INVALID_ARGUMENT,
    ConfigError: Code.INVALID_ARGUMENT,
    DataError: Code.INVALID_ARGUMENT,
    RefusedError: Code.INVALID_ARGUMENT,
    NonFiniteError: Code.INVALID_ARGUMENT,
    WorkingSetError: Code.FAILED_PRECONDITION,
    ReopenError: Code.FAILED_PRECONDITION,
    MismatchError: Code.FAILED_PRECONDITION,
    LockedError: Code.FAILED_PRECONDITION,
    FencedError: Code.ABORTED,
    LostError: Code.DATA_LOSS,
    CorruptError: Code.DATA_LOSS,
    DiskFullError: Code.RESOURCE_EXHAUSTED,
    OverloadedError: Code.RESOURCE_EXHAUSTED,
    UnavailableError: Code.UNAVAILABLE,
    ClosedError: Code.UNAVAILABLE,
    StoreError: Code.INTERNAL,
    ShardError: Code.INTERNAL,
    TerraceError: Code.INTERNAL,
}
_KINDS = {kind.__name__: kind for kind in CODES}
# What gRPC itself says, or what stands between.
_FOREIGN: dict[grpc.StatusCode, type[ShardError]] = {
    Code.UNAVAILABLE: UnavailableError,
    Code.DEADLINE_EXCEEDED: UnavailableError,
    Code.CANCELLED: UnavailableError,
    Code.ABORTED: UnavailableError,
    Code.UNAUTHENTICATED: RefusedError,
    Code.PERMISSION_DENIED: RefusedError,
    Code.INVALID_ARGUMENT: RefusedError,
    Code.UNIMPLEMENTED: RefusedError,
    Code.NOT_FOUND: RefusedError,
    Code.ALREADY_EXISTS: RefusedError,
    Code.OUT_OF_RANGE: RefusedError,
    Code.FAILED_PRECONDITION: RefusedError,
    Code.INTERNAL: ShardError,
    Code.UNKNOWN: ShardError,
    Code.DATA_LOSS: ShardError,
}


def status_of(error: TerraceError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Code, details and trailing metadata that tell of an error."""
    kind = next(kind for kind in type(error).__mro__ if kind in CODES)
    trailing = [(ERROR, kind.__name__)]
    if isinstance(error, OverloadedError):
        trailing.append((RETRY, str(round(1000 * error.retry_seconds))))
    if isinstance(error, WorkingSetError):
        trailing.append((NEEDED, str(error.needed_bytes)))
    return CODES[kind], _shortened(" ".join(str(error).split())), tuple(trailing)


def error_of(shard: str, call: grpc.RpcError) -> TerraceError:
    """The error that a failed call tells of, the shard named in it."""
    trailing = _metadata(call.trailing_metadata())
    message = f"{shard}: {call.details() or call.code().name}"
    kind = _KINDS.get(trailing.get(ERROR, ""))
    if kind is OverloadedError:
        return OverloadedError(message, retry_seconds=_number(trailing, RETRY, 100) / 1000)
    if kind is WorkingSetError:
        return WorkingSetError(message, needed_bytes=_number(trailing, NEEDED, 0))
    if kind is not None:
        return kind(message)
    if call.code() is Code.RESOURCE_EXHAUSTED:
        # Of gRPC: as many calls at once as the server takes, or a message above its limit.
        busy = "oncurrent" in (call.details() or "")
        return OverloadedError(message) if busy else RefusedError(message)
    return _FOREIGN.get(call.code(), ShardError)(message)


def _shortened(text: str) -> str:
    whole = text.encode("utf-8", "replace")
    end = "" if len(whole) <= MOST_DETAILS else " ..."
    return whole[:MOST_DETAILS].decode("utf-8", "ignore") + end


def _metadata(pairs: Sequence[Any] | None) -> dict[str, str]:
    return {key: value for key, value in pairs or () if isinstance(value, str)}


def _number(trailing: dict[str, str], key: str, otherwise: int) -> int:
    text = trailing.get(key, "")
    return int(text) if text.isdecimal() and len(text) < 19 else otherwise


def unlisted() -> list[str]:
    """Names of errors in `storage.errors` that no row of the table has."""
    every = {e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)}
    return sorted(error.__name__ for error in every - CODES.keys())
