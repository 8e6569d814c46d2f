"""Salvage: what is damaged in a store that nobody uses, and how the rest is kept.

Damage is found by checksums: of blocks, of the directory of their keys, of deleted keys, and of the
facts that cuts and checkpoints are. A repair writes all that is whole into a new file, as
compaction does (`ps.shrink`), and keeps the damaged one beside it. Of a row whose newest version is
lost, the version of an older kept checkpoint shows, or none: then it starts anew.

Threads: one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ps.checkpoint import COUNTS_FACT, Checkpoints, Cut, cut_from
from ps.directory import StoreDirectory
from storage.examine import examine
from storage.log import BlockLog
from storage.losses import Losses
from storage.pages import page_damage
from storage.reachable import Reachable

_CUT = "cut"


@dataclass(frozen=True)
class Diagnosis:
    """broken: one line for each thing that is damaged. rows: live ones, by table, damaged or not.

    lost: rows of those that are known to be damaged, versions for older checkpoints included.
    """

    broken: list[str]
    rows: dict[str, int]
    lost: int


def diagnose(
    path: str | Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Diagnosis:
    """Read everything and say what is damaged. RAM: 16 bytes a row, and 10 MiB. Changes nothing.

    progress: called with the blocks read and all of them. Raises: LockedError.
    """
    with closing(StoreDirectory(path, None)) as directory:
        if broken := page_damage(directory.path):
            return Diagnosis(broken, {}, 0)  # to read on could crash
        tables = {table.name: table.shape for table in directory.tables}
        with closing(BlockLog(directory.path, list(tables))) as log:
            broken = damaged_facts(log)
            cuts = [*sound_cuts(log)] or [_fallback(log)]
            rows, found, done = {}, {}, 0
            for name, shape in tables.items():
                losses = Losses(name)
                ends = [cut.blocks.get(name, 0) for cut in cuts]
                reachable = Reachable(log, name, shape.place_bits, ends, losses)
                rows[name], found[name] = reachable.newest, (reachable, losses)
            total = sum(reachable.segments.blocks for reachable, _ in found.values())

            def advance(count: int) -> None:
                nonlocal done
                done += count
                progress(done, total)

            for name, (reachable, losses) in found.items():
                examine(log, reachable, tables[name], losses, advance)
                broken += losses.lines()
            return Diagnosis(broken, rows, sum(losses.rows for _, losses in found.values()))


def damaged_facts(log: BlockLog) -> list[str]:
    """Lines about cuts and checkpoints that cannot be read."""
    lines = []
    for name in log.damaged_facts():
        number = _checkpoint_of(name)
        if name == _CUT:
            lines.append("the last cut is damaged: the newest checkpoint, or all, shows instead")
        elif number:
            lines.append(f"checkpoint number {number}: {name.split('/')[0]} damaged: it is lost")
        else:
            lines.append(f"fact {name!r} is damaged: it is made anew")
    return lines


def sound_cuts(log: BlockLog) -> Iterable[Cut]:
    """The last cut, if it can be read, and those of the checkpoints that can, newest first."""
    damaged = log.damaged_facts()
    lost = {_checkpoint_of(name) for name in damaged}
    names = [] if _CUT in damaged else [_CUT]
    manifests = sorted(log.names("checkpoint/"), reverse=True)
    names += [name for name in manifests if _checkpoint_of(name) not in lost]
    for name in names:
        if (fact := log.fact(name)) is not None:
            yield cut_from(json.loads(fact))


def mend_facts(log: BlockLog) -> Checkpoints:
    """Forget facts that are damaged, so that what is left can be opened; the others stand."""
    cuts, all_of_it = list(sound_cuts(log)), _fallback(log)
    damaged = log.damaged_facts()
    lost = {_checkpoint_of(name) for name in damaged} - {None}
    parts = [name for name in log.names("") if _checkpoint_of(name) in lost]
    log.forget([*damaged, *parts])
    checkpoints = Checkpoints(log)
    if _CUT in damaged:
        checkpoints.make_cut(cuts[0] if cuts else all_of_it)
    return checkpoints


def _fallback(log: BlockLog) -> Cut:
    """What shows when no cut can be read: everything, or nothing where none was ever made."""
    return Cut(dict(log.committed) if _CUT in log.names(_CUT) else {}, {})


def _checkpoint_of(name: str) -> int | None:
    """The number of the checkpoint that a fact is a part of; 0 for counts that a cut has."""
    kind, number, *_ = *name.split("/"), ""
    if kind == COUNTS_FACT:
        return 0
    return int(number) if kind in ("checkpoint", "state") and number.isdecimal() else None
