"""Checkpoints: the cut and the kept checkpoints of a store, as facts in its log.

A *cut* says which blocks of each table count; opening a store shows the last one. A *checkpoint* is
a cut with a manifest (step, blocks, the caller's state) in the same transaction. The last two are
kept. Everything here is one synced transaction: it happened or it did not.

The counts of doorkeepers are part of a checkpoint's state, under a name of their own. A cut may
have newer ones, kept as the state of a checkpoint number 0; the next checkpoint takes their place.

Threads: one owner, the store's planner; the properties may be read by any thread.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ps.lineage import FACT as LINEAGE
from ps.lineage import Lineage
from ps.state import pack_state, unpack_state
from storage.environment import Environment
from storage.errors import CorruptError
from storage.log import BlockLog

COUNTS = "__counts__"
"""Where the doorkeepers' counts are in a checkpoint's state; no name of the caller's."""

COUNTS_FACT = "counts"
"""The fact that says what is in the state number 0."""

KEPT = 2
"""Checkpoints that are kept."""

SESSIONS_FACT, FENCES_FACT, REDO_FACT, PLACE_FACT = "sessions", "fences", "redo", "place"
"""Facts of a shard: how far its clients had come at the last cut, who may come, from which file of
the redo log on the cut lacks changes, and which shard it is."""

_SHARD_FACTS = (SESSIONS_FACT, FENCES_FACT, REDO_FACT, PLACE_FACT)

Facts = Mapping[str, bytes | None]
_CUT, _STATE = "cut", "state/"
_PIECE = 1 << 24


@dataclass(frozen=True)
class Cut:
    """What counts. blocks: of each table, one more than the highest. steps: the last applied."""

    blocks: Mapping[str, int]
    steps: Mapping[str, int]

    def describe(self) -> dict[str, Any]:
        """As JSON values; `cut_from` makes an equal one."""
        return {"blocks": dict(self.blocks), "steps": dict(self.steps)}


def cut_from(description: Mapping[str, Any]) -> Cut:
    """The cut that `Cut.describe` described."""
    return Cut(dict(description["blocks"]), dict(description["steps"]))


class Checkpoints:
    """See the module's docstring; over the facts of ``log``.

    least: so many are not given up for want of room. state_bytes: the newest checkpoint's state
    takes at most as many. lineage: of the log.

    Raises: CorruptError when a cut or a manifest is damaged.
    """

    def __init__(self, log: BlockLog) -> None:
        self._log = log
        self.least = 1
        if damaged := [name for name in log.damaged_facts() if not name.startswith(_STATE)]:
            raise CorruptError(
                f"{log.path}: expected facts as written, got damage in {damaged}; run terrace "
                f"check --repair, or restore a backup"
            )
        self.lineage = Lineage(log)
        cut = log.fact(_CUT)
        self._cut = None if cut is None else cut_from(json.loads(cut))
        self._manifests = {number: self._manifest(number) for number in self._numbers()}
        self.state_bytes = self._bytes_of(self.number)

    @property
    def steps(self) -> list[int]:
        """Steps of the kept checkpoints, oldest first."""
        return [int(manifest["step"]) for manifest in self._manifests.values()]

    @property
    def number(self) -> int:
        """Of the newest checkpoint, counted from 1 since the log was made; 0 without one."""
        return max(self._manifests, default=0)

    @property
    def newest_cut(self) -> Cut:
        """That of the newest checkpoint; an empty one without."""
        manifest = self._manifests.get(self.number)
        return Cut({}, {}) if manifest is None else cut_from(manifest)

    @property
    def cut(self) -> Cut:
        """The last cut; an empty one when there was none."""
        return self._cut or Cut({}, {})

    def ends(self, table: str) -> list[int]:
        """The ends of all cuts that are kept, the last one's first."""
        cuts = [self.cut, *(cut_from(manifest) for manifest in self._manifests.values())]
        return [cut.blocks.get(table, 0) for cut in cuts]

    def make_cut(
        self, cut: Cut, counts: Mapping[str, Any] | None = None, notes: Facts | None = None
    ) -> None:
        """Make the blocks below its ends count. Raises: DiskFullError.

        counts: of the doorkeepers, to be shown with it; None leaves those that were saved last.
        notes: what else is committed with it.
        """
        facts = {**(notes or {}), _CUT: json.dumps(cut.describe()).encode()}
        if counts is not None:
            tree, tensors = pack_state({COUNTS: counts})
            facts |= self._without(0) | _pieces(0, tensors) | {COUNTS_FACT: tree.encode()}
        self._log.commit(facts)
        self._cut = cut

    def go_back(self, step: int, cut: Cut, notes: Facts | None = None) -> None:
        """Make the newest checkpoint of this step, and its cut, the last. Raises: DiskFullError.

        Its counts too; newer checkpoints are gone.
        """
        number = self._of_step(step)
        newer = [other for other in self._manifests if other > number]
        facts = {**(notes or {}), _CUT: json.dumps(cut.describe()).encode()}
        for other in newer:
            facts |= self._without(other)
        self._log.commit(facts | self._without_counts())
        self._manifests = {n: m for n, m in self._manifests.items() if n not in newer}
        self.state_bytes = self._bytes_of(number)
        if newer:
            self.lineage = Lineage(self._log)  # their numbers come again, under another token
        self._cut = cut

    def counts(self) -> dict[str, Any]:
        """The newest counts that were saved, by table; none, and a warning, if they are damaged."""
        try:
            state = self._counts_of_cut()
            if state is None:
                newest = self.newest()
                state = {} if newest is None else newest[2]
        except CorruptError as error:
            warnings.warn(f"counts of keys start anew: {error}", RuntimeWarning, stacklevel=2)
            return {}
        return dict(state.get(COUNTS, {}))

    def add(
        self,
        step: int,
        cut: Cut,
        tree: str,
        tensors: bytes,
        *,
        keep: int = KEPT,
        notes: Facts | None = None,
    ) -> None:
        """A cut and a checkpoint of it; all but ``keep`` are given up. Raises: DiskFullError.

        tree, tensors: of `ps.state.pack_state`. notes: what else is committed with it.
        """
        number = 1 + self.number
        # There may be pieces of this number that a backup left which was killed.
        facts = self._without(number) | self._without_counts() | _pieces(number, tensors)
        facts |= notes or {}
        facts |= self.lineage.facts_with(number)
        manifest = {"step": step, **cut.describe(), "state": tree}
        facts[_name(number)] = json.dumps(manifest).encode()
        facts[_CUT] = json.dumps(cut.describe()).encode()
        old = list(self._manifests)[: max(0, len(self._manifests) + 1 - keep)]
        for given_up in old:
            facts |= self._without(given_up)
        self._log.commit(facts)
        self.lineage.note(number)
        self._manifests = {n: m for n, m in self._manifests.items() if n not in old}
        self._manifests[number], self._cut = manifest, cut
        self.state_bytes = len(tensors)

    def forget_newer(self, step: int) -> None:
        """Forget checkpoints of later steps. The file needs no room for that."""
        for number in [n for n, m in self._manifests.items() if m["step"] > step]:
            self._log.forget(self._without(number))
            del self._manifests[number]
            self.lineage = Lineage(self._log)  # the number comes again, under another token

    def give_up_older(self) -> int:
        """Forget the older of two checkpoints: its step. The file needs no room for that."""
        number = min(self._manifests)
        self._log.forget(self._without(number))
        return int(self._manifests.pop(number)["step"])

    def copy(self, log: BlockLog, moved: Mapping[str, Mapping[int, int]]) -> None:
        """Write cut and checkpoints to another log, whose blocks are there already.

        moved: by table, where the ends of all cuts lie there. Raises: DiskFullError.
        """

        def there(cut: Cut) -> dict[str, Any]:
            blocks = {table: moved[table][end] for table, end in cut.blocks.items()}
            return Cut(blocks, cut.steps).describe()

        for number in self._manifests:
            for name in self._log.names(_state(number)):
                log.commit({name: self._log.fact(name)})
        others = [
            name
            for kind in (COUNTS_FACT, _state(0), *_SHARD_FACTS)
            for name in self._log.names(kind)
        ]
        log.commit({name: self._log.fact(name) for name in others})
        manifests = {
            _name(number): json.dumps(manifest | there(cut_from(manifest))).encode()
            for number, manifest in self._manifests.items()
        }
        log.commit({**manifests, _CUT: json.dumps(there(self.cut)).encode()})

    def copy_state(self, log: Environment) -> None:
        """Write the newest checkpoint's state to another log, where nothing shows it yet.

        Raises: DiskFullError; CorruptError.
        """
        for name in self._log.names(_state(self.number)):
            log.commit({name: self._log.fact(name)})

    def newest_facts(self, log: Environment) -> dict[str, bytes | None]:
        """What to commit to a log with the newest one's blocks and state, to show it and no other.

        Raises: CorruptError.
        """
        state = self._log.names(_state(self.number))
        there = [*log.names("checkpoint/"), *log.names("state/"), *log.names(COUNTS_FACT)]
        facts: dict[str, bytes | None] = {name: None for name in there if name not in state}
        facts[_name(self.number)] = self._log.fact(_name(self.number))
        facts[_CUT] = json.dumps(self.newest_cut.describe()).encode()
        return facts | {LINEAGE: self._log.fact(LINEAGE)}

    def newest(self, step: int | None = None) -> tuple[int, Cut, dict[str, Any]] | None:
        """Step, cut and the caller's state of the newest checkpoint; None without one.

        step: the newest of this step. Raises: CorruptError when the state cannot be read.
        """
        number = self._of_step(step)
        if number not in self._manifests:
            return None
        manifest = self._manifests[number]
        state = unpack_state(manifest["state"], self._state(number))
        return int(manifest["step"]), cut_from(manifest), state

    def check(self) -> list[str]:
        """Of which kept checkpoints the state cannot be read, one line each."""
        broken = []
        for number, manifest in self._manifests.items():
            try:
                unpack_state(manifest["state"], self._state(number))
            except CorruptError as error:
                broken.append(f"checkpoint of step {manifest['step']}: {error}")
        try:
            self._counts_of_cut()
        except CorruptError as error:
            broken.append(f"counts of keys with the last cut: {error}")
        return broken

    def _counts_of_cut(self) -> dict[str, Any] | None:
        """The state that `make_cut` packed; None when there is none newer than a checkpoint's."""
        tree = self._log.fact(COUNTS_FACT)
        return None if tree is None else unpack_state(tree.decode(), self._state(0))

    def _of_step(self, step: int | None) -> int:
        """The number of the newest checkpoint, of this step if it is given; 0 for none."""
        found = [n for n, m in self._manifests.items() if step is None or m["step"] == step]
        return max(found, default=0)

    def _numbers(self) -> list[int]:
        return [int(name.split("/")[1]) for name in self._log.names("checkpoint/")]

    def _manifest(self, number: int) -> dict[str, Any]:
        return dict(json.loads(self._log.fact(_name(number)) or b"{}"))

    def _state(self, number: int) -> bytes:
        return b"".join(self._log.fact(name) or b"" for name in self._log.names(_state(number)))

    def _bytes_of(self, number: int) -> int:
        return sum(self._log.size(piece) for piece in self._log.names(_state(number)))

    def _without(self, number: int) -> dict[str, bytes | None]:
        return dict.fromkeys([_name(number), *self._log.names(_state(number))])

    def _without_counts(self) -> dict[str, bytes | None]:
        return self._without(0) | {COUNTS_FACT: None}


def _pieces(number: int, tensors: bytes) -> dict[str, bytes | None]:
    starts = enumerate(range(0, len(tensors), _PIECE))
    return {f"{_state(number)}{i:06d}": tensors[start : start + _PIECE] for i, start in starts}


def _name(number: int) -> str:
    return f"checkpoint/{number:012d}"


def _state(number: int) -> str:
    return f"{_STATE}{number:012d}/"
