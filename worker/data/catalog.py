"""The catalog: from what a user writes after ``--data`` to a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from storage.errors import ConfigError, DataError
from worker.data.dataset import Dataset
from worker.data.files import FileDataset, Parts, Reader, list_files, split
from worker.data.flights import Flights
from worker.data.lines import read_head
from worker.data.parquet import ParquetReader, is_parquet
from worker.data.schema import SCHEMAS, detect
from worker.data.synthetic import Synthetic, parse_recipe
from worker.data.text import TextReader

_FORMS = "; ".join(f"{schema.name} with {schema.describe()}" for schema in SCHEMAS)

UNDERSTOOD = (
    "flights; synthetic:rows=1e6,zipf=1.05,...; a file or folder of text, plain or .gz "
    f"({_FORMS}); a file or folder of Parquet"
)
"""The specifications that ``open_dataset`` takes, in words."""


def open_dataset(
    spec: str,
    *,
    test: str | None = None,
    holdout: float = 0.1,
    bad_lines: Literal["stop", "skip"] = "stop",
    seed: int = 0,
) -> Dataset:
    """The dataset that ``spec`` names; reads a few lines of its files at most.

    test: a file or folder with the held-out examples. Without it they are the files of the folder
    whose names say so (``files.split``), else the last ``holdout`` of the rows in order.
    bad_lines: raise DataError at the first, or skip and count them. seed: of a synthetic dataset
    whose specification has none.

    Raises ConfigError for a specification or option that is not understood, DataError for files
    that are missing, empty or in no known format.
    """
    if not 0.0 <= holdout < 1.0:
        raise ConfigError(f"holdout must be a share from 0 up to (not including) 1, got {holdout}")
    if bad_lines not in ("stop", "skip"):
        raise ConfigError(f"bad_lines must be 'stop' or 'skip', got {bad_lines!r}")
    kind, _, options = spec.partition(":")
    if kind in ("flights", "synthetic"):
        if test is not None:
            raise ConfigError(f"{kind} has held-out examples of its own; leave out test={test!r}")
        if kind == "synthetic":
            return Synthetic(parse_recipe(options, seed=seed), holdout=holdout)
        return Flights.load()
    parts = split(_list(spec)) if test is None else Parts(_list(spec), _list(test))
    return FileDataset(spec, _reader(parts, bad_lines), parts, holdout=holdout)


def _list(spec: str) -> tuple[Path, ...]:
    path = Path(spec)
    # A bare word that is no file is a misspelt kind rather than a missing file.
    if not spec or (not path.exists() and len(path.parts) == 1 and not path.suffix):
        raise ConfigError(f"data {spec!r} is not understood, nor a file; expected {UNDERSTOOD}")
    return list_files(path)


def _reader(parts: Parts, bad_lines: Literal["stop", "skip"]) -> Reader:
    """The reader of the format that every file has.

    Raises DataError for files of different formats, an empty one among them, or an unknown one.
    """
    files = parts.train + parts.test
    for path in files:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: expected lines of examples, got an empty file")
    odd = [path for path in files if is_parquet(path) != is_parquet(files[0])]
    if odd:
        raise DataError(f"{odd[0]}: expected the same format as {files[0]}; keep them apart")
    if is_parquet(files[0]):
        return ParquetReader(files[0], bad_lines=bad_lines)
    lines = read_head(files[0])
    schema = detect(lines)
    if schema is None:
        shown = lines[0][:40].decode("ascii", "replace") if lines else ""
        raise DataError(f"{files[0]}:1: expected {_FORMS}; got {shown!r}")
    return TextReader(schema, bad_lines=bad_lines)
