"""StoreDirectory: one owner, and the format file says what the store was made with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ps
from ps.directory import FORMAT, StoreDirectory
from ps.table import Table
from storage.errors import ConfigError, LockedError, MismatchError, StoreError

ADS = Table("ads", dim=4, optimizer=ps.Adagrad(lr=0.1), rows=100)

HOLDER = """
import sys
from ps.directory import StoreDirectory
directory = StoreDirectory(sys.argv[1], None)
print("open", flush=True)
sys.stdin.read()
"""


def open_and_close(path: Path, tables: list[Table] | None) -> tuple[Table, ...]:
    directory = StoreDirectory(path, tables)
    directory.close()
    directory.close()
    return directory.tables


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_a_store_remembers_its_tables(tmp_path: Path) -> None:
    users = Table("users", dim=2, dtype="int8", init=ps.Normal(0.5), seed=3)
    assert open_and_close(tmp_path / "new/store", [ADS, users]) == (ADS, users)
    assert open_and_close(tmp_path / "new/store", None) == (ADS, users)
    assert open_and_close(tmp_path / "new/store", [users, ADS]) == (users, ADS)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("dim", 8),
        ("optimizer", ps.Adam(lr=0.1)),
        ("optimizer", ps.Adagrad(lr=0.1, eps=1e-3)),
        ("init", ps.Uniform(0.5)),
        ("dtype", "bfloat16"),
        ("rows", 101),
        ("rows", None),
        ("seed", 1),
    ],
)
def test_another_table_is_refused_in_a_line_that_names_the_field(
    tmp_path: Path, field: str, other: Any
) -> None:
    open_and_close(tmp_path, [ADS])
    with pytest.raises(MismatchError, match=f"'ads' was made with {field} ") as caught:
        StoreDirectory(tmp_path, [replace(ADS, **{field: other})])
    one_line(caught.value)
    assert open_and_close(tmp_path, None) == (ADS,)


def test_other_names_are_refused(tmp_path: Path) -> None:
    open_and_close(tmp_path, [ADS])
    with pytest.raises(MismatchError, match=r"\['ads'\].*\['users'\]"):
        StoreDirectory(tmp_path, [replace(ADS, name="users")])
    with pytest.raises(ConfigError, match="names of their own"):
        StoreDirectory(tmp_path / "other", [ADS, ADS])
    with pytest.raises(ConfigError, match="one or more"):
        StoreDirectory(tmp_path / "another", [])


def test_the_learning_rate_may_differ(tmp_path: Path) -> None:
    open_and_close(tmp_path, [ADS])
    faster = replace(ADS, optimizer=ps.Adagrad(lr=9.0))
    assert open_and_close(tmp_path, [faster]) == (faster,)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    open_and_close(tmp_path, [ADS])
    file = tmp_path / "terrace.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": FORMAT + 1}))
    with pytest.raises(MismatchError, match=f"found {FORMAT + 1}") as caught:
        StoreDirectory(tmp_path, None)
    one_line(caught.value)


def test_an_older_format_is_named_with_the_way_out(tmp_path: Path) -> None:
    open_and_close(tmp_path, [ADS])
    file = tmp_path / "terrace.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": FORMAT - 1}))
    with pytest.raises(MismatchError, match=r"older version.*terrace import") as caught:
        StoreDirectory(tmp_path, None)
    one_line(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 2, "tables": [{}]}'])
def test_a_damaged_format_file_is_a_clear_error(tmp_path: Path, text: str) -> None:
    open_and_close(tmp_path, [ADS])
    (tmp_path / "terrace.json").write_text(text)
    with pytest.raises(StoreError, match=r"terrace\.json: expected a store's format file"):
        StoreDirectory(tmp_path, None)


def test_a_folder_without_a_store_is_not_made_one_by_looking(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a store"):
        StoreDirectory(tmp_path / "nothing", None)
    assert not (tmp_path / "nothing").exists()


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written") as caught:
        StoreDirectory(tmp_path / "file" / "store", [ADS])
    one_line(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            StoreDirectory(tmp_path, [ADS])
    finally:
        tmp_path.chmod(0o700)


def test_discarding_leaves_no_store(tmp_path: Path) -> None:
    directory = StoreDirectory(tmp_path, [ADS])
    directory.discard()
    directory.close()
    assert open_and_close(tmp_path, [replace(ADS, dim=8)])[0].dim == 8
    directory = StoreDirectory(tmp_path, None)
    directory.discard()  # it was a store before
    directory.close()
    assert open_and_close(tmp_path, None)[0].dim == 8


def test_an_opening_that_fails_leaves_the_folder_to_other_tables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ram"):
        ps.open(tmp_path, [ADS, replace(ADS, name="other")], ram="20KiB")
    with ps.open(tmp_path, [ADS], ram="4MiB", threads=1) as store:
        store.write("ads", np.arange(3), np.ones((3, ADS.dim), np.float32))
    with pytest.raises(ConfigError, match="ram"):
        ps.open(tmp_path, [ADS], ram="20KiB")  # it was a store before
    with ps.open(tmp_path, [ADS], ram="4MiB", threads=1) as store:
        assert store.read("ads", np.arange(3)).min() == 1


def test_two_owners_in_one_process_are_refused(tmp_path: Path) -> None:
    directory = StoreDirectory(tmp_path, [ADS])
    with pytest.raises(LockedError, match=f"process {os.getpid()} has it"):
        StoreDirectory(tmp_path, None)
    directory.close()
    open_and_close(tmp_path, None)


def test_a_second_process_is_named_and_its_lock_ends_with_it(tmp_path: Path) -> None:
    open_and_close(tmp_path, [ADS])
    root = Path(ps.__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(LockedError, match=f"process {holder.pid} has it") as caught:
            StoreDirectory(tmp_path, None)
        one_line(caught.value)
        holder.kill()
    assert open_and_close(tmp_path, None) == (ADS,)


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    directory = StoreDirectory(tmp_path, [ADS])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # holds a copy of the descriptor, as a DataLoader worker would
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    directory.close()
    try:
        assert open_and_close(tmp_path, None) == (ADS,)
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(child, 0)
