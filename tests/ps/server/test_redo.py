"""Redo: what was synced is not lost, many share a sync, a full disk harms nothing."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ps.server.redo import Redo
from storage.errors import ClosedError, ConfigError, CorruptError, DiskFullError, StoreError

ROOT = Path(__file__).resolve().parents[3]
DEADLINE = 60.0


def opened(path: Path, first: int = 0) -> tuple[Redo, list[bytes]]:
    redo = Redo(path, first=first)
    try:
        return redo, list(redo.replay())
    except BaseException:
        redo.close()
        raise


def kept(path: Path, first: int = 0) -> list[bytes]:
    redo, records = opened(path, first)
    redo.close()
    return records


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def fill(redo: Redo, *records: bytes) -> None:
    for record in records:
        redo.sync(redo.append([record]))


def test_what_was_appended_is_replayed_over_generations_and_openings(tmp_path: Path) -> None:
    redo, records = opened(tmp_path)
    assert records == []
    fill(redo, b"a", b"b")
    assert redo.rotate() == 1
    fill(redo, b"c")
    assert list(redo.replay()) == []
    redo.close()
    redo, records = opened(tmp_path)
    assert records == [b"a", b"b", b"c"]
    assert redo.append([memoryview(b"d"), b"", b"e"]) == 1
    redo.close()
    assert kept(tmp_path) == [b"a", b"b", b"c", b"de"]
    # Each opening begins a generation of its own, which may stay empty.
    assert names(tmp_path) == [f"redo-{n:012d}.log" for n in range(4)]
    assert kept(tmp_path, first=2) == [b"de"]
    assert names(tmp_path) == [f"redo-{n:012d}.log" for n in range(2, 5)]


def test_generations_that_a_cut_holds_are_dropped_and_bytes_say_so(tmp_path: Path) -> None:
    redo, _ = opened(tmp_path)
    fill(redo, bytes(1000))
    assert redo.bytes == sum(file.stat().st_size for file in tmp_path.iterdir()) > 1000
    following = redo.rotate()
    fill(redo, b"later")
    assert redo.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    redo.drop(following)
    assert redo.bytes == sum(file.stat().st_size for file in tmp_path.iterdir()) < 1000
    redo.drop(following)
    with pytest.raises(ConfigError, match="below 1 at most, the one in use, got 2; rotate first"):
        redo.drop(2)
    redo.close()
    assert kept(tmp_path, following) == [b"later"]


def test_a_store_without_files_begins_with_the_generation_that_its_cut_names(
    tmp_path: Path,
) -> None:
    (tmp_path / "redo-1.log").write_text("somebody else's")
    assert kept(tmp_path, first=5) == []
    assert names(tmp_path) == ["redo-000000000005.log", "redo-1.log"]


def test_nothing_is_appended_before_a_torn_end_was_cut_off(tmp_path: Path) -> None:
    redo, _ = opened(tmp_path)
    fill(redo, b"a", b"b")
    redo.close()
    with open(tmp_path / "redo-000000000000.log", "ab") as file:
        file.write(b"torn")
    redo = Redo(tmp_path, first=0)
    for change in (lambda: redo.append([b"c"]), redo.rotate, lambda: redo.drop(0)):
        with pytest.raises(StoreError, match="expected replay"):
            change()
    replay = redo.replay()
    assert next(replay) == b"a"
    with pytest.raises(StoreError, match="expected replay"):
        redo.append([b"c"])
    assert list(redo.replay()) == [b"a", b"b"]
    redo.append([b"c"])
    redo.close()
    assert kept(tmp_path) == [b"a", b"b", b"c"]


def test_a_log_that_is_closed_before_the_replay_stays_as_it_is(tmp_path: Path) -> None:
    redo, _ = opened(tmp_path)
    fill(redo, b"a")
    redo.close()
    Redo(tmp_path, first=0).close()
    assert names(tmp_path) == ["redo-000000000000.log"]


@pytest.mark.parametrize("size", [0, 5, 28])
def test_a_file_that_was_being_made_counts_for_nothing(tmp_path: Path, size: int) -> None:
    redo, _ = opened(tmp_path)
    fill(redo, b"a")
    redo.close()
    (tmp_path / "redo-000000000001.log").write_bytes(bytes(size))
    assert kept(tmp_path) == [b"a"]
    assert kept(tmp_path) == [b"a"]


def test_a_torn_end_before_a_newer_file_is_damage(tmp_path: Path) -> None:
    redo, _ = opened(tmp_path)
    fill(redo, b"a", b"b")
    redo.rotate()
    redo.close()
    path = tmp_path / "redo-000000000000.log"
    os.truncate(path, path.stat().st_size - 1)
    redo = Redo(tmp_path, first=0)
    replay = redo.replay()
    assert next(replay) == b"a"
    with pytest.raises(CorruptError, match=rf"{path}: expected record 1"):
        next(replay)
    redo.close()


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_file_is_damage(tmp_path: Path, missing: int) -> None:
    redo, _ = opened(tmp_path)
    for record in (b"a", b"b", b"c"):
        fill(redo, record)
        redo.rotate()
    redo.close()
    path = tmp_path / f"redo-{missing:012d}.log"
    path.unlink()
    with pytest.raises(CorruptError, match=rf"{path}: expected a file of the redo log"):
        Redo(tmp_path, first=0)


def test_the_end_is_the_position_of_the_newest_record(tmp_path: Path) -> None:
    redo, _ = opened(tmp_path)
    assert redo.end == 0
    assert redo.append([b"a"]) == redo.end == 1
    redo.rotate()
    assert redo.append([b"b"]) == redo.end == 2
    redo.close()


def test_a_log_that_is_discarded_leaves_no_file_and_none_is_found(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_text("the store's")
    assert not Redo.found(tmp_path)
    redo, _ = opened(tmp_path)
    fill(redo, b"a")
    redo.rotate()
    assert Redo.found(tmp_path)
    redo.discard()
    assert names(tmp_path) == ["data.mdb"] and not Redo.found(tmp_path)
    with pytest.raises(ClosedError):
        redo.append([b"b"])


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        Redo(tmp_path / "none", first=0)


def test_a_closed_log_says_so(tmp_path: Path) -> None:
    redo, _ = opened(tmp_path)
    fill(redo, b"a")
    redo.append([b"b"])
    redo.close()
    redo.close()
    for call in (
        lambda: redo.append([b"c"]), lambda: redo.sync(1), redo.rotate, lambda: redo.drop(0),
        lambda: list(redo.replay()),
    ):  # fmt: skip
        with pytest.raises(ClosedError, match=r"used after close\(\)"):
            call()
    assert redo.syncs == 2  # what was appended last is on the disk, too


# -- many threads -----------------------------------------------------------------------------


def test_threads_that_wait_share_a_sync_and_each_gets_what_it_waited_for(tmp_path: Path) -> None:
    redo, _ = opened(tmp_path)
    threads, each, failed = 8, 40, []
    start = threading.Barrier(threads)

    def work(name: int) -> None:
        try:
            start.wait(DEADLINE)
            for number in range(each):
                fill(redo, b"%d %d" % (name, number))
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work, args=(name,)) for name in range(threads)]
    for worker in workers:
        worker.start()
    for _ in range(5):
        redo.rotate()
    for worker in workers:
        worker.join(DEADLINE)
    syncs = redo.syncs
    redo.close()
    assert not failed
    records = [tuple(map(int, record.split())) for record in kept(tmp_path)]
    assert len(records) == threads * each
    for name in range(threads):
        assert [n for who, n in records if who == name] == list(range(each))
    assert syncs < threads * each / 2


def test_one_sync_serves_all_that_came_while_another_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redo, _ = opened(tmp_path)
    fdatasync, began, go_on = os.fdatasync, threading.Event(), threading.Event()

    def slow(file: int) -> None:
        began.set()
        assert go_on.wait(DEADLINE)
        fdatasync(file)

    monkeypatch.setattr(os, "fdatasync", slow)
    done = []

    def wait_for(position: int) -> None:
        redo.sync(position)
        done.append(position)

    first = threading.Thread(target=wait_for, args=(redo.append([b"0"]),))
    first.start()
    assert began.wait(DEADLINE)
    # Appending goes on beside the sync; what is appended now is the next one's.
    others = [threading.Thread(target=wait_for, args=(redo.append([b"%d" % n]),)) for n in range(8)]
    for other in others:
        other.start()
    assert not done
    go_on.set()
    for thread in (first, *others):
        thread.join(DEADLINE)
    assert sorted(done) == list(range(1, 10))
    assert redo.syncs == 2
    redo.close()


def test_a_rotation_syncs_the_old_file_first_and_appends_wait_for_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redo, _ = opened(tmp_path)
    redo.append([b"a"])
    fdatasync, making, go_on = os.fdatasync, threading.Event(), threading.Event()
    files: list[list[str]] = []

    def watched(file: int) -> None:
        files.append(names(tmp_path))
        if len(files) == 2:
            making.set()
            assert go_on.wait(DEADLINE)
        fdatasync(file)

    monkeypatch.setattr(os, "fdatasync", watched)
    appended = threading.Event()

    def append() -> None:
        redo.append([b"b"])
        appended.set()

    threads = [threading.Thread(target=redo.rotate), threading.Thread(target=append)]
    threads[0].start()
    assert making.wait(DEADLINE)
    threads[1].start()
    # Long enough for an append that does not wait.
    did_not_wait = appended.wait(0.1)
    go_on.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert not did_not_wait
    assert [len(each) for each in files] == [1, 2]
    redo.drop(1)
    redo.close()
    assert kept(tmp_path, first=1) == [b"b"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_sync_that_failed_is_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    redo, _ = opened(tmp_path)
    fill(redo, b"a")
    fdatasync, waiting = os.fdatasync, threading.Barrier(2)

    def fail(file: int) -> None:
        waiting.wait(DEADLINE)
        waiting.wait(DEADLINE)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fdatasync", fail)
    raised: list[BaseException] = []

    def wait_for(position: int) -> None:
        with pytest.raises(StoreError) as info:
            redo.sync(position)
        raised.append(info.value)

    threads = [threading.Thread(target=wait_for, args=(redo.append([b"b"]),)) for _ in range(3)]
    threads[0].start()
    waiting.wait(DEADLINE)
    for thread in threads[1:]:
        thread.start()
    waiting.wait(DEADLINE)
    for thread in threads:
        thread.join(DEADLINE)
    assert len(raised) == 3
    # The disk would say yes now, and have lost what it said no to.
    for call in (lambda: redo.append([b"c"]), lambda: redo.sync(1), redo.rotate):
        with pytest.raises(StoreError, match=r"log, got .*until the shard is restarted") as info:
            call()
        assert not isinstance(info.value, DiskFullError)
    redo.close()


def test_a_rotation_whose_sync_fails_is_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redo, _ = opened(tmp_path)
    redo.append([b"a"])

    def fail(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError, match="restarted"):
            redo.rotate()
    with pytest.raises(StoreError, match="restarted"):
        redo.append([b"b"])
    redo.close()
    assert names(tmp_path) == ["redo-000000000000.log"]


# -- a full disk ------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip() if done else 'no mount'}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_takes_nothing_and_with_room_again_all_goes_on(small_disk: Path) -> None:
    redo, _ = opened(small_disk)
    taken: list[bytes] = []
    with closing(redo):
        with pytest.raises(DiskFullError, match=r"got \d+ of 50040 bytes written; free space"):
            while True:
                record = bytes([len(taken)]) * 50_000
                redo.append([record])
                taken.append(record)
        with pytest.raises(DiskFullError):
            redo.append([bytes(50_000)])
        redo.sync(len(taken))
        with open(small_disk / "ballast", "wb", buffering=0) as file:
            while os.statvfs(small_disk).f_bavail:
                file.write(bytes(4096))
        with pytest.raises(DiskFullError, match="No space left on device; free space"):
            redo.rotate()
        assert names(small_disk) == ["ballast", "redo-000000000000.log"]
        (small_disk / "ballast").unlink()
        fill(redo, b"small")
        assert redo.rotate() == 1
        fill(redo, b"last")
    assert kept(small_disk) == [*taken, b"small", b"last"]


# -- a process that dies ----------------------------------------------------------------------

# One process that has everything imported forks the ones that are killed; it has no threads.
KILLED = """
import os, random, signal, sys, threading
from contextlib import closing
from pathlib import Path
from ps.server.redo import Redo

def live(path, say):
    redo = Redo(path, first=0)
    count = sum(1 for _ in redo.replay())
    lock = threading.Lock()
    def work():
        nonlocal count
        while True:
            with lock:
                number, count = count, count + 1
                position = redo.append([b"%d " % number, bytes(number * 37 % 9000)])
            redo.sync(position)
            os.write(say, b"%d\\n" % number)
    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    work()

def check(path, acknowledged):
    redo = Redo(path, first=0)
    records = list(redo.replay())
    redo.close()
    for number, record in enumerate(records):
        assert record == b"%d " % number + bytes(number * 37 % 9000), number
    assert acknowledged < len(records), (acknowledged, len(records))

path, lives, chosen = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
acknowledged = -1
for life in range(lives):
    hear, say = os.pipe()
    if not (child := os.fork()):
        os.close(hear)
        live(path, say)
    os.close(say)
    with open(hear) as heard:
        for _ in range(chosen.randrange(1, 60)):
            acknowledged = max(acknowledged, int(heard.readline()))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        acknowledged = max([acknowledged, *map(int, heard)])
    check(path, acknowledged)
print(acknowledged)
"""


@pytest.mark.parametrize("lives", [5, pytest.param(300, marks=pytest.mark.stress)])
def test_nothing_that_a_killed_process_acknowledged_is_lost(tmp_path: Path, lives: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(lives), "1"],
        capture_output=True, text=True, timeout=DEADLINE + lives, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= lives


class Crashes(RuleBasedStateMachine):
    """A log that loses power, against a list: of what was not synced, anything may be gone."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.first = self.position = 0
        # Records since the cut, how many are synced, and how much of the newest file is.
        self.records: list[bytes] = []
        self.synced = self.sound = 0
        self.redo = Redo(self.path, first=0)
        self.settle()

    def settle(self) -> None:
        self.synced = len(self.records)
        self.sound = self.newest.stat().st_size

    @property
    def newest(self) -> Path:
        return max(self.path.iterdir())

    @rule(parts=st.lists(st.binary(max_size=700), max_size=4))
    def append(self, parts: list[bytes]) -> None:
        self.position = self.redo.append(parts)
        self.records.append(b"".join(parts))

    @rule()
    def sync(self) -> None:
        self.redo.sync(self.position)
        self.settle()

    @rule()
    def rotate(self) -> None:
        self.redo.rotate()
        self.settle()

    @rule(dropped=st.booleans())
    def cut(self, dropped: bool) -> None:
        self.first = self.redo.rotate()
        self.records = []
        self.settle()
        if dropped:
            self.redo.drop(self.first)

    @rule(seed=st.integers(0, 999), sectors=st.booleans())
    def crash(self, seed: int, sectors: bool) -> None:
        chosen, path = random.Random(seed), self.newest
        content = bytearray(path.read_bytes())
        self.redo.close()
        size = chosen.randint(self.sound, len(content))
        if sectors:
            size = len(content)
            for begin in range(self.sound, size, 512):
                if chosen.random() < 0.5:
                    content[begin : begin + 512] = bytes(len(content[begin : begin + 512]))
        path.write_bytes(content[:size])
        self.reopen()

    @rule(size=st.integers(0, 28))
    def crash_while_a_file_is_made(self, size: int) -> None:
        number = int(self.newest.stem.removeprefix("redo-"))
        self.redo.close()
        self.newest.with_name(f"redo-{number + 1:012d}.log").write_bytes(bytes(size))
        self.settle()
        self.reopen()

    def reopen(self) -> None:
        self.redo, records = opened(self.path, self.first)
        assert len(records) >= self.synced
        assert records == self.records[: len(records)]
        self.records, self.position = records, 0
        self.settle()

    @invariant()
    def bytes_are_those_of_the_files(self) -> None:
        assert self.redo.bytes == sum(file.stat().st_size for file in self.path.iterdir())

    def teardown(self) -> None:
        self.redo.close()
        self.folder.cleanup()


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(deadline=None, max_examples=30, stateful_step_count=30)


@pytest.mark.stress
def test_crashes_for_long() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Crashes, settings=settings(deadline=None, max_examples=1000, stateful_step_count=60)
    )
