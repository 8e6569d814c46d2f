"""Pages: whether LMDB's file is sound below its values, told without LMDB.

Values carry checksums, LMDB's own pages do not: one flipped bit there and LMDB may crash, or show
what was true a transaction ago. py-lmdb's verifier walks the file as bytes: every page that can be
reached, every key in order, every count, and each page in use or free. It takes about 4 us a page,
a third of what opening a store takes, and reads the header of every block.

Threads: any; nobody may write the file meanwhile.
"""

from __future__ import annotations

import struct
from pathlib import Path

from lmdb.verify import VerifyError, verify

_PAGE, _TRANSACTION = 4096, 144


def page_damage(folder: Path) -> list[str]:
    """What is broken in the structure of the data file in ``folder``, one line each."""
    file = folder / "data.mdb"
    if not file.exists():
        return []
    try:
        found = verify(str(file), subdir=False) or _torn_meta(file)
    except (VerifyError, OSError) as error:
        found = [str(error)]
    return [f"{file}: {line}; restore a backup" for line in found]


def _torn_meta(file: Path) -> list[str]:
    """Each transaction writes the meta page that the last one did not: they are neighbours."""
    with open(file, "rb") as data:
        pages = data.read(2 * _PAGE)
    first, second = (struct.unpack_from("=Q", pages, at + _TRANSACTION)[0] for at in (0, _PAGE))
    if abs(first - second) == 1 or first == second == 0:
        return []
    return [f"expected meta pages of two transactions in a row, got {first} and {second}"]
