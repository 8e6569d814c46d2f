"""Flipper: flips one bit of a store's file at a time, and tells what became of it.

Each flip is tried in a fork, since LMDB may crash or hang on a damaged page of its own. Half of the
flips are anywhere in the file, which is mostly blocks; half are in LMDB's own pages.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ps
from storage.errors import TerraceError
from storage.pages import page_damage
from tests.stress.work import ADS, KEYS, RAM, ROWS, Shown, perform, shown_by, values_of

PAGE, HANG_SECONDS, STEPS = 4096, 30, 14
STATE = torch.arange(3000.0)
_META, _BRANCH, _LEAF = 8, 1, 2
_RIGHT, _FOUND, _WRONG, _FOREIGN = range(4)
_WORDS = {_RIGHT: "right", _FOUND: "found", _WRONG: "wrong in silence", _FOREIGN: "another error"}


def make_store(path: Path) -> tuple[Shown, Shown]:
    """A closed store: what it shows, and what its newest checkpoint does (no deletion is later)."""
    with ps.open(path, [ADS], ram=RAM, threads=1, compact="10GiB") as store:
        for step in range(1, STEPS + 1):
            perform(store, step)
            if step in (STEPS // 2, STEPS - 1):
                kept = shown_by(store)
                store.checkpoint(step, {"step": step, "dense": STATE})
        return shown_by(store), kept


def own_pages(raw: bytes) -> np.ndarray:
    """Places of the bytes in use in LMDB's meta, branch and leaf pages."""
    places: list[int] = []
    for begin in range(0, len(raw), PAGE):
        number, _, kind, lower, upper = struct.unpack_from("=QHHHH", raw, begin)
        if kind & _META:
            places += range(begin, begin + 152)
        elif number * PAGE == begin and kind in (_BRANCH, _LEAF):
            places += [*range(begin, begin + lower), *range(begin + upper, begin + PAGE)]
    return np.array(places)


def look(path: Path, shown: Shown, kept: Shown) -> int:
    """Check the store, then use it: what became of the flip."""
    if page_damage(path):
        return _FOUND
    try:
        with ps.open(path, [ADS], ram=RAM, threads=1) as store:
            if store.check():
                return _FOUND
            right = is_shown(store, shown)
            step, state = store.resume()
            right &= step == state["step"] == STEPS - 1 and torch.equal(state["dense"], STATE)
            return _RIGHT if right and is_shown(store, kept) else _WRONG
    except TerraceError:
        return _FOUND


def is_shown(store: ps.Store, shown: Shown) -> bool:
    return np.array_equal(store.read("ads", KEYS), values_of(np.arange(ROWS), shown))


def in_fork(call: Callable[[], int]) -> str:
    """What came of the call, or the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = _FOREIGN
        try:
            signal.alarm(HANG_SECONDS)
            code = call()
        except BaseException:  # the edge of a process
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return _WORDS[code] if code >= 0 else signal.Signals(-code).name


def main() -> None:
    """Arguments: a folder, how many flips, a seed. Prints what became of each as JSON."""
    folder, count, rng = (
        Path(sys.argv[1]),
        int(sys.argv[2]),
        np.random.default_rng(int(sys.argv[3])),
    )
    torch.set_num_threads(1)
    shown, kept = make_store(folder / "sound")
    raw = (folder / "sound" / "data.mdb").read_bytes()
    own, tried = own_pages(raw), folder / "tried"
    results: list[dict[str, Any]] = []
    for number in range(count):
        place = int(rng.choice(own) if number % 2 else rng.integers(0, len(raw)))
        bit = int(rng.integers(0, 8))
        shutil.copytree(folder / "sound", tried)
        with open(tried / "data.mdb", "r+b") as file:
            file.seek(place)
            file.write(bytes([raw[place] ^ 1 << bit]))
        became = in_fork(lambda: look(tried, shown, kept))
        results.append({"place": place, "bit": bit, "own": number % 2 == 1, "became": became})
        shutil.rmtree(tried)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
