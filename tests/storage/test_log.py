"""BlockLog: what is committed is there, whole, or named as damaged; failures are said in a line."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from storage.block import SEGMENT_BITS, BlockShape, run_blocks
from storage.codec import codec
from storage.errors import ClosedError, CorruptError, DiskFullError, StoreError
from storage.log import BlockLog

SHAPE = BlockShape(16, 1, codec("float32"))
REPOSITORY = Path(__file__).resolve().parents[2]


def blocks_from(first: int, count: int) -> np.ndarray:
    """Blocks that tell their number: n holds n % 5 + 1 rows with keys 1000 n, 1000 n + 1 ..."""
    blocks = np.zeros(count, SHAPE.dtype)
    number = np.arange(first, first + count)
    blocks["count"] = number % 5 + 1
    blocks["keys"] = 1000 * number[:, None] + np.arange(SHAPE.rows)
    blocks["records"] = (number % 251)[:, None, None]
    return blocks


def expect(blocks: np.ndarray, first: int) -> None:
    wanted = blocks_from(first, len(blocks))
    for field in ("count", "keys", "records"):
        np.testing.assert_array_equal(blocks[field], wanted[field])
    assert blocks["number"].tolist() == list(range(first, first + len(blocks)))


def read(log: BlockLog, first: int, count: int, table: str = "t") -> np.ndarray:
    out = np.zeros(count, SHAPE.dtype)
    assert log.read(table, np.arange(first, first + count), out) == []
    return out


def listed(log: BlockLog, table: str = "t") -> list[tuple[int, list[int], list[int]]]:
    """By block: number, number of rows, keys."""
    found = []
    for first, rows, keys in log.directory(table):
        ends = np.cumsum(rows, dtype=np.int64)
        for i, count in enumerate(rows.tolist()):
            found.append((first + i, count, keys[ends[i] - count : ends[i]].tolist()))
    return found


def expected_list(end: int) -> list[tuple[int, list[int], list[int]]]:
    return [(n, n % 5 + 1, [1000 * n + i for i in range(n % 5 + 1)]) for n in range(end)]


def fill(log: BlockLog, count: int, *, each: int = 100, table: str = "t") -> None:
    first = log.committed[table]
    for start in range(first, first + count, each):
        log.append(table, start, blocks_from(start, min(each, first + count - start)))
    log.wait()


def flip(path: Path, needle: bytes, offset: int = 0) -> None:
    """Flip one bit ``offset`` bytes from ``needle`` wherever it is in the (closed) data file.

    Wherever: LMDB leaves stale copies of its pages behind.
    """
    data = bytearray((path / "data.mdb").read_bytes())
    places = [match.start() for match in re.finditer(re.escape(needle), data)]
    assert places, "the bytes to damage are not in the file"
    for place in places:
        data[place + offset] ^= 0x04
    (path / "data.mdb").write_bytes(data)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BlockLog]:
    made = BlockLog(tmp_path / "log", ["t", "other"])
    yield made
    made.close()


def test_appended_blocks_are_read_back_in_any_selection(log: BlockLog) -> None:
    fill(log, 1000)
    expect(read(log, 0, 1000), 0)
    chosen = np.sort(np.random.default_rng(0).permutation(1000)[:300])
    out = np.zeros(300, SHAPE.dtype)
    assert log.read("t", chosen, out) == []
    assert out["number"].tolist() == chosen.tolist()


def test_tables_have_blocks_of_their_own(log: BlockLog) -> None:
    fill(log, 70)
    fill(log, 5, table="other")
    assert log.committed == {"t": 70, "other": 5}
    expect(read(log, 0, 5, "other"), 0)
    assert listed(log, "other") == expected_list(5)


def test_a_reopened_log_has_every_block_and_its_directory(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        fill(log, 333, each=150)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        assert log.committed == {"t": 333}
        assert listed(log) == expected_list(333)
        expect(read(log, 0, 333), 0)


def test_closing_writes_what_is_queued_and_joins_the_threads(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        for start in range(0, 1200, 400):
            log.append("t", start, blocks_from(start, 400))
    log.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("terrace")]
    with closing(BlockLog(tmp_path, ["t"])) as log:
        assert log.committed["t"] == 1200


def test_blocks_that_are_not_there_are_reported_as_damaged(log: BlockLog) -> None:
    fill(log, 3)
    assert log.read("t", np.array([1, 3, 9]), np.zeros(3, SHAPE.dtype)) == [1, 2]


# -- truncation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0, 1, 63, 64, 65, 100, 164, 199, 200, 300])
def test_truncation_removes_exactly_the_blocks_from_the_end_on(log: BlockLog, end: int) -> None:
    fill(log, 200)
    fill(log, 7, table="other")
    log.truncate("t", end)
    left = min(end, 200)
    assert log.committed == {"t": left, "other": 7}
    assert listed(log) == expected_list(left)
    if left:
        expect(read(log, 0, left), 0)
    fill(log, 90)
    assert listed(log) == expected_list(left + 90)


def test_a_long_truncation_takes_several_transactions(log: BlockLog) -> None:
    fill(log, 9000, each=3000)
    log.truncate("t", 10)
    assert listed(log) == expected_list(10)


# -- segments and tombstones -----------------------------------------------------------------------


def test_freed_segments_are_gone_and_others_stay(log: BlockLog) -> None:
    fill(log, 1000)
    fill(log, 70, table="other")
    before = log.used_bytes
    log.free("t", [0, 3, 4], np.zeros(10, SHAPE.dtype))
    gone = {*range(64), *range(192, 320)}
    left = [block for block in expected_list(1000) if block[0] not in gone]
    assert listed(log) == left
    assert log.numbers("t", 0, 200).tolist() == list(range(64, 192))
    assert log.read("t", np.array([63, 64, 191, 192]), np.zeros(4, SHAPE.dtype)) == [0, 3]
    assert log.used_bytes < before - 180 * 4096
    assert listed(log, "other") == expected_list(70)
    fill(log, 10)
    file = log.file_bytes
    fill(log, 170)
    assert log.file_bytes <= file + 4 * 4096  # in the place of what was freed
    log.free("t", list(range(20)), np.zeros(100, SHAPE.dtype))
    assert listed(log) == []
    assert log.committed["t"] == 1180


def test_a_segment_is_freed_when_the_disk_is_full(small_disk: Path) -> None:
    with closing(Unwarned(small_disk, ["t"])) as log:
        fill(log, 640, each=64)
        (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free))
        assert shutil.disk_usage(small_disk).free == 0
        for segment in range(10):
            log.free("t", [segment], np.zeros(64, SHAPE.dtype))
        assert listed(log) == []


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [-16, -10, -8, 0, 8, 700, 2000, 4000])
def test_a_flipped_bit_in_a_block_is_found(tmp_path: Path, offset: int) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        fill(log, 100)
    # Keys follow 16 bytes of header; the whole array is in the block, but not in the directory.
    flip(tmp_path, blocks_from(42, 1)["keys"][0].tobytes(), offset)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        assert log.read("t", np.arange(100), np.zeros(100, SHAPE.dtype)) == [42]
        assert log.read("t", np.array([41, 42]), np.zeros(2, SHAPE.dtype)) == [1]
        assert listed(log) == expected_list(100)


RUN = run_blocks(SHAPE.rows)


def run_bytes(first: int) -> bytes:
    """Keys of a run's blocks as they stand in the directory, and nowhere else."""
    blocks = expected_list(first + RUN)[first:]
    return b"".join(np.array(keys, "<u8").tobytes() for _, _, keys in blocks)


# Before a run's keys are its counts, two bytes a block, 8 before those, and its number, the key in
# LMDB, before them.
@pytest.mark.parametrize("offset", [0, 5, -3, -2 * RUN - 2, -2 * RUN - 8, -2 * RUN - 16])
def test_a_damaged_directory_is_made_again_from_the_blocks(tmp_path: Path, offset: int) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        fill(log, 200)
        runs = len(list(log.directory("t")))
        assert runs >= 4
    flip(tmp_path, run_bytes(64), offset)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        assert listed(log) == expected_list(200)
        assert len(list(log.directory("t"))) == runs - 1 + RUN


@pytest.mark.parametrize("first", [0, 1, 63, 64, 100])
def test_no_run_crosses_the_edge_of_a_segment_or_of_a_page(tmp_path: Path, first: int) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        fill(log, first + 300, each=first + 150)
        assert listed(log) == expected_list(first + 300)
        for begin, rows, keys in log.directory("t"):
            assert begin >> SEGMENT_BITS == begin + len(rows) - 1 >> SEGMENT_BITS
            assert 8 + 2 * len(rows) + 8 * len(keys) <= 4080


def test_directory_and_block_both_damaged_are_named(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        fill(log, 200)
    flip(tmp_path, run_bytes(64))
    flip(tmp_path, blocks_from(66, 1)["keys"][0].tobytes())
    with closing(BlockLog(tmp_path, ["t"])) as log:
        with pytest.raises(CorruptError, match=r"'t'.*block 66") as error:
            listed(log)
        assert "\n" not in str(error.value)


def test_a_damaged_fact_is_found(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"])) as log:
        log.commit({"cut": b"a marker with some length", "other": b"sound"})
    flip(tmp_path, b"a marker with", 3)
    with closing(BlockLog(tmp_path, ["t"])) as log:
        assert log.fact("other") == b"sound"
        with pytest.raises(CorruptError, match="'cut'"):
            log.fact("cut")


def test_what_is_no_log_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(StoreError) as error:
        BlockLog(tmp_path, ["t"])
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


# -- facts -----------------------------------------------------------------------------------------


def test_facts_are_set_listed_and_removed_together(log: BlockLog) -> None:
    log.commit({"a/1": b"x", "a/2": b"", "b": b"y" * 10_000})
    assert log.names("a/") == ["a/1", "a/2"] and log.names("c") == []
    log.commit({"a/1": None, "a/3": b"z", "missing": None})
    assert log.names("a/") == ["a/2", "a/3"] and log.names("") == ["a/2", "a/3", "b"]
    assert (log.fact("a/1"), log.fact("a/2"), log.fact("b")) == (None, b"", b"y" * 10_000)


# -- full disks ------------------------------------------------------------------------------------


def fill_up(log: BlockLog) -> int:
    """Append, one run at a time, until the log refuses: how many blocks it took."""
    end = log.committed["t"]
    with pytest.raises(DiskFullError) as error:
        while True:
            log.append("t", end, blocks_from(end, 64))
            log.wait()  # no writer may fail
            end += 64
    assert "\n" not in str(error.value)
    return end


def test_a_full_budget_is_refused_before_anything_is_queued(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"], disk_bytes=8 << 20)) as log:
        end = fill_up(log)
        assert end > 500
        assert log.committed["t"] == end
        expect(read(log, 0, end), 0)
        assert (tmp_path / "data.mdb").stat().st_size <= 8 << 20
        # What is freed inside the file can be used again.
        log.truncate("t", 64)
        fill(log, 500, each=64)
        assert listed(log) == expected_list(564)


def test_a_cut_still_fits_when_no_block_does_but_a_large_state_does_not(tmp_path: Path) -> None:
    with closing(BlockLog(tmp_path, ["t"], disk_bytes=8 << 20)) as log:
        fill_up(log)
        for cut in range(200):
            log.commit({"cut": b"marker %d" % cut, "state": bytes(100_000)})
        with pytest.raises(DiskFullError):
            log.commit({"cut": b"", "state": bytes(2 << 20)})
        assert log.fact("cut") == b"marker 199" and log.fact("state") == bytes(100_000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip() if done else 'no mount'}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_refused_and_what_was_committed_stays_readable(small_disk: Path) -> None:
    with closing(BlockLog(small_disk, ["t"])) as log:
        end = fill_up(log)
        expect(read(log, 0, end), 0)
    with closing(BlockLog(small_disk, ["t"])) as log:
        assert log.committed["t"] == end


class Unwarned(BlockLog):
    """A log whose disk fills up between the check and the write."""

    def ensure_room(self, size: int) -> None:
        pass


def test_a_disk_that_somebody_else_fills_fails_the_writer_and_harms_nothing(
    small_disk: Path,
) -> None:
    with closing(Unwarned(small_disk, ["t"])) as log:
        fill(log, 128, each=64)
        (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free))
        log.append("t", 128, blocks_from(128, 64))
        with pytest.raises(DiskFullError) as error:
            log.wait()
        assert "\n" not in str(error.value)
        expect(read(log, 0, 128), 0)
    (small_disk / "other").unlink()
    with closing(BlockLog(small_disk, ["t"])) as log:
        assert listed(log) == expected_list(128)
        fill(log, 64)


# -- failures --------------------------------------------------------------------------------------


def test_the_writers_failure_is_raised_at_the_next_call_and_reading_goes_on(log: BlockLog) -> None:
    fill(log, 10)
    log.append("t", 5, blocks_from(5, 3))  # numbers that are taken: the writer must refuse them
    with pytest.raises(StoreError, match="block 5"):
        log.wait()
    for call in (
        lambda: log.append("t", 10, blocks_from(10, 1)),
        lambda: log.commit({"cut": b""}),
        lambda: log.wait("t", 11),
        lambda: log.truncate("t", 5),
    ):
        with pytest.raises(StoreError, match="block 5"):
            call()
    expect(read(log, 0, 10), 0)
    assert log.committed["t"] == 10 and listed(log) == expected_list(10)


def test_a_closed_log_says_so_at_every_call(log: BlockLog) -> None:
    log.close()
    for call in (
        lambda: log.append("t", 0, blocks_from(0, 1)),
        lambda: log.read("t", np.array([0]), np.zeros(1, SHAPE.dtype)),
        lambda: list(log.directory("t")),
        lambda: log.truncate("t", 0),
        lambda: log.wait(),
        lambda: log.fact("cut"),
        lambda: log.names(""),
        lambda: log.commit({}),
        lambda: log.file_bytes,
        lambda: log.used_bytes,
    ):
        with pytest.raises(ClosedError):
            call()


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for path in (tmp_path / "file" / "log", tmp_path / "no" / "such" / "folder"):
        with pytest.raises(StoreError) as error:
            BlockLog(path, ["t"])
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_read_only_folder_is_refused_in_one_line(tmp_path: Path, small_disk: Path) -> None:
    # Permissions do not hold the superuser back, a read-only file system does.
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    if subprocess.run(remount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be made read-only here")
    with pytest.raises(StoreError) as error:
        BlockLog(small_disk, ["t"])
    assert str(small_disk) in str(error.value) and "\n" not in str(error.value)


_APPENDER = """
import sys
from pathlib import Path
from tests.storage.test_log import blocks_from
from storage.log import BlockLog
log, end = BlockLog(Path(sys.argv[1]), ["t"]), 0
while True:
    log.append("t", end, blocks_from(end, 70))
    end += 70
    print(end, log.committed["t"], flush=True)
"""


@pytest.mark.parametrize("appends", [1, 4, 30])
def test_a_process_killed_while_it_appends_leaves_whole_runs(tmp_path: Path, appends: int) -> None:
    command = [sys.executable, "-c", _APPENDER, str(tmp_path / "log")]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(appends)]
        process.send_signal(signal.SIGKILL)
    queued, committed = map(int, lines[-1].split())
    with closing(BlockLog(tmp_path / "log", ["t"])) as log:
        end = log.committed["t"]
        assert end % 70 == 0 and end >= committed
        assert listed(log) == expected_list(end)
        if end:
            expect(read(log, 0, end), 0)
        fill(log, 70)
    assert queued >= 70 * appends
