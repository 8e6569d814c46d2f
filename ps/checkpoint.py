"""Checkpoints: the cut and the kept checkpoints of a store, as facts in its log.

A *cut* says which blocks of each table count; opening a store shows the last one. A *checkpoint* is
a cut with a manifest (step, blocks, the caller's state) in the same transaction. The last two are
kept. Everything here is one synced transaction: it happened or it did not.

Threads: one owner, the store's planner.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ps.state import unpack_state
from storage.log import BlockLog

_CUT = "cut"
_KEPT = 2
_PIECE = 1 << 24

Ends = Mapping[str, int]
"""Of each table, one more than the highest block that counts."""


class Checkpoints:
    """See the module's docstring; over the facts of ``log``."""

    def __init__(self, log: BlockLog) -> None:
        self._log = log

    @property
    def steps(self) -> list[int]:
        """Steps of the kept checkpoints, oldest first."""
        return [int(self._manifest(number)["step"]) for number in self._numbers()]

    def cut(self) -> Ends:
        """The last cut; empty when there was none."""
        cut = self._log.fact(_CUT)
        return {} if cut is None else dict(json.loads(cut)["blocks"])

    def make_cut(self, ends: Ends) -> None:
        """Make the blocks below ``ends`` count. Raises: DiskFullError."""
        self._log.commit({_CUT: _packed_cut(ends)})

    def add(self, step: int, ends: Ends, tree: str, tensors: bytes) -> None:
        """A cut and a checkpoint of it; the one before last is given up. Raises: DiskFullError.

        tree, tensors: of `ps.state.pack_state`.
        """
        numbers = self._numbers()
        number = 1 + max(numbers, default=0)
        facts: dict[str, bytes | None] = {
            f"{_state(number)}{i:06d}": tensors[start : start + _PIECE]
            for i, start in enumerate(range(0, len(tensors), _PIECE))
        }
        manifest = {"step": step, "blocks": dict(ends), "state": tree}
        facts[_name(number)] = json.dumps(manifest).encode()
        facts[_CUT] = _packed_cut(ends)
        for old in numbers[: 1 - _KEPT]:
            facts |= dict.fromkeys([_name(old), *self._log.names(_state(old))])
        self._log.commit(facts)

    def newest(self) -> tuple[int, Ends, dict[str, Any]] | None:
        """Step, blocks and the caller's state of the newest checkpoint; None without one.

        Raises: CorruptError when the state cannot be read.
        """
        numbers = self._numbers()
        if not numbers:
            return None
        manifest = self._manifest(numbers[-1])
        pieces = [self._log.fact(name) or b"" for name in self._log.names(_state(numbers[-1]))]
        state = unpack_state(manifest["state"], b"".join(pieces))
        return int(manifest["step"]), manifest["blocks"], state

    def _numbers(self) -> list[int]:
        return [int(name.split("/")[1]) for name in self._log.names("checkpoint/")]

    def _manifest(self, number: int) -> dict[str, Any]:
        return dict(json.loads(self._log.fact(_name(number)) or b"{}"))


def _packed_cut(ends: Ends) -> bytes:
    return json.dumps({"blocks": dict(ends)}).encode()


def _name(number: int) -> str:
    return f"checkpoint/{number:012d}"


def _state(number: int) -> str:
    return f"state/{number:012d}/"
