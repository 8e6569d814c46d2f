"""Call: one use of an embedding module, prepared for the store before or as it happens.

The prefetch loop prepares and stages the calls of coming batches in its own thread; a module that is
then called with the same arguments finds them staged. Without prefetch, a call stages itself.

Threads: calls are prepared by one thread and used by another; they are never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor

from ps.store import Store
from ps.workingset import WorkingSet
from worker.input import Bags


class Caller(Protocol):
    """A module that looks rows up in a store."""

    store: Store

    def prepare(self, *arguments: Any) -> Sequence[tuple[str, Bags]]:
        """The table and the bags of each lookup that calling it with ``arguments`` makes."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """``module(*arguments)`` and the lookups it makes: (table, bags) each."""

    module: Caller
    arguments: tuple[Any, ...]
    lookups: Sequence[tuple[str, Bags]]

    @staticmethod
    def of(module: Caller, arguments: Any) -> Call:
        """Prepare one call; ``arguments`` is a tuple, or the only argument itself."""
        args = arguments if isinstance(arguments, tuple) else (arguments,)
        return Call(module, args, module.prepare(*args))

    def is_for(self, module: Caller, arguments: Sequence[Any]) -> bool:
        """The same module, called with the same tensors, unchanged."""
        given = [argument for argument in arguments if argument is not None]
        ours = [argument for argument in self.arguments if argument is not None]
        return (
            self.module is module
            and len(given) >= len(ours)
            and all(_same(a, b) for a, b in zip(ours, given, strict=False))
        )


@dataclass(frozen=True, slots=True)
class Staged:
    """A call whose rows are resident. inverses: of each lookup, (N,) int32 into its part."""

    call: Call
    working_set: WorkingSet
    inverses: Sequence[NDArray[Any]]


def stage(store: Store, calls: Sequence[Call]) -> list[Staged]:
    """Make the rows of several calls resident as one working set, which nobody holds yet."""
    requests: dict[str, list[Any]] = {}
    for call in calls:
        for table, bags in call.lookups:
            requests.setdefault(table, []).append(bags.keys)
    working_set = store.stage(requests)
    inverses = {table: iter(part.inverses) for table, part in working_set.parts.items()}
    return [
        Staged(call, working_set, [next(inverses[table]) for table, _ in call.lookups])
        for call in calls
    ]


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if hasattr(a, "lengths") and hasattr(b, "lengths"):
        return _same(a.values(), b.values()) and _same(a.lengths(), b.lengths())
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    # The prefetch function may have made another view of the same memory.
    return (
        a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.device == b.device
        and a.shape == b.shape and a.stride() == b.stride() and a._version == b._version
    )  # fmt: skip
