"""Every error Terrace raises, as one tree::

    TerraceError
    ├── ConfigError (ValueError)          an argument, option or budget that cannot be meant
    │   └── KeyRangeError                 a key outside a table of fixed size
    ├── DataError (ValueError)            training data that cannot be read; names file and line
    ├── WorkingSetError                   one batch's rows do not fit the top tier
    ├── NonFiniteError                    NaN or infinity in a gradient
    ├── StoreError                        something about a store directory
    │   ├── LockedError                   another process has it open
    │   ├── MismatchError                 it was made with another table, optimizer or format
    │   ├── CorruptError                  a block's checksum or content is wrong
    │   └── DiskFullError                 no room for what has to be written
    ├── ShardError                        something about a server that holds rows; names it
    │   ├── UnavailableError              it did not answer, or somebody was not there, in time
    │   ├── OverloadedError               it has too much to do; the same request may work later
    │   ├── RefusedError                  it does not let this client in, or not this request
    │   ├── FencedError                   a newer process of this client has taken its place
    │   └── LostError                     it lost changes in a crash: all go back to a checkpoint
    └── ClosedError                       used after close()

A message says what was expected, what came, where, and what to do, in one line.
"""

from __future__ import annotations


class TerraceError(Exception):
    """The root of the tree: catching it catches every error that Terrace raises on purpose."""


class ConfigError(TerraceError, ValueError):
    """An argument, option or budget that cannot be meant."""


class KeyRangeError(ConfigError):
    """A key outside a table of fixed size."""


class DataError(TerraceError, ValueError):
    """Training data that cannot be read; the message names the file and the line."""


class WorkingSetError(TerraceError):
    """The rows of one batch do not fit the top tier; no row has changed.

    ``needed_bytes`` is a budget for that tier that would do.
    """

    def __init__(self, message: str, *, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class NonFiniteError(TerraceError):
    """NaN or infinity in a gradient; no row has changed."""


class StoreError(TerraceError):
    """Something about a store directory."""


class LockedError(StoreError):
    """Another process has the store open."""


class MismatchError(StoreError):
    """The store was made with another table, optimizer or format."""


class CorruptError(StoreError):
    """A block's checksum or content is wrong; the message names the table and the rows it held."""


class DiskFullError(StoreError):
    """No room on disk for what has to be written; what was promised durable is intact."""


class ShardError(TerraceError):
    """Something about a server that holds rows; the message names it."""


class UnavailableError(ShardError):
    """A shard did not answer in time, or waited for somebody who did not come."""


class OverloadedError(ShardError):
    """A shard has too much to do; nothing has changed and the same request may work later.

    ``retry_seconds`` is when to try again.
    """

    def __init__(self, message: str, *, retry_seconds: float = 0.1) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class RefusedError(ShardError):
    """A shard does not let this client in, or not with this request; no row has changed."""


class FencedError(ShardError):
    """A newer process of the same client has taken its place; this one's changes count no more."""


class LostError(ShardError):
    """A shard lost changes that it had applied; every worker has to go back to a checkpoint."""


class ClosedError(TerraceError):
    """A store, tier or pipeline was used after close()."""
