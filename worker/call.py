"""Call: one use of an embedding module, prepared for the store before or as it happens.

The prefetch loop prepares and stages the calls of coming batches in its own thread; a module that
is then called with the same arguments finds them staged. Without prefetch, a call stages itself.

Threads: calls are prepared by one thread and used by another; they are never changed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor

from ps.tables import Tables
from ps.workingset import Asked, WorkingSet
from worker.input import Bags


class Caller(Protocol):
    """A module that looks rows up in a store."""

    store: Tables

    def prepare(self, *arguments: Any) -> Sequence[tuple[str, Bags]]:
        """The table and the bags of each lookup that calling it with ``arguments`` makes."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """``module(*arguments)`` and the lookups it makes: (table, bags) each.

    arguments: kept, so that nothing else takes their memory. marks: what they were then.
    """

    module: Caller
    arguments: tuple[Any, ...]
    marks: Sequence[Hashable]
    lookups: Sequence[tuple[str, Bags]]

    @staticmethod
    def of(module: Caller, arguments: Any) -> Call:
        """Prepare one call; ``arguments`` is a tuple, or the only argument itself."""
        args = arguments if isinstance(arguments, tuple) else (arguments,)
        return Call(module, args, _marks(args), module.prepare(*args))

    def is_for(self, module: Caller, arguments: Sequence[Any]) -> bool:
        """The same module, called with the same tensors, unchanged since they were staged."""
        return self.module is module and self.marks == _marks(arguments)


@dataclass(frozen=True, slots=True)
class Staged:
    """A call whose rows are resident. inverses: of each lookup, (N,) int32 into its part."""

    call: Call
    working_set: WorkingSet
    inverses: Sequence[NDArray[Any]]


def ask(store: Tables, calls: Sequence[Call]) -> Mapping[str, Asked]:
    """What several calls ask of the store as one batch. Raises: KeyRangeError."""
    requests: dict[str, list[Any]] = {}
    for call in calls:
        for table, bags in call.lookups:
            requests.setdefault(table, []).append(bags.keys)
    return store.ask(requests)


def stage(
    store: Tables,
    calls: Sequence[Call],
    asked: Mapping[str, Asked],
    *,
    ahead: int = 0,
    beside: bool = False,
) -> list[Staged]:
    """Make the rows of several calls resident as one working set, which nobody holds yet.

    ahead, beside: see `Tables.stage_asked`.
    """
    working_set = store.stage_asked(asked, ahead=ahead, beside=beside)
    inverses = {table: iter(part.inverses) for table, part in working_set.parts.items()}
    return [
        Staged(call, working_set, [next(inverses[table]) for table, _ in call.lookups])
        for call in calls
    ]


def _marks(arguments: Sequence[Any]) -> list[Hashable]:
    """What says that two calls have the same arguments; trailing None are as if not given."""
    marks = [_mark(argument) for argument in arguments]
    while marks and marks[-1] is None:
        marks.pop()
    return marks


def _mark(argument: Any) -> Hashable:
    if argument is None:
        return None
    if isinstance(argument, Tensor):
        # Not the object: the prefetch function may have made another view of the same memory. And
        # the version: ids that were changed in place since are other ids.
        version = -1 if argument.is_inference() else argument._version
        place = (argument.data_ptr(), argument.dtype, argument.device)
        return (*place, argument.shape, argument.stride(), version)
    if hasattr(argument, "lengths"):
        return (_mark(argument.values()), _mark(argument.lengths()), tuple(argument.keys()))
    return id(argument)
