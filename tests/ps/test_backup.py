"""Backup: the destination shows a checkpoint, whole and exactly, whatever happens meanwhile."""

from __future__ import annotations

import copy
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ps
import ps.backup
from ps.backup import BackupReport, back_up
from ps.lineage import FACT as LINEAGE
from ps.shrink import shrink
from storage.errors import (
    ConfigError,
    CorruptError,
    DiskFullError,
    LockedError,
    MismatchError,
    StoreError,
)
from storage.log import BlockLog
from storage.replica import Replica
from tests.storage.test_log import small_disk  # noqa: F401 - a fixture

ADS = ps.Table("ads", dim=64, optimizer=ps.SGD(lr=0.1), init=ps.Zeros())
USERS = ps.Table("users", dim=4, optimizer=ps.Adagrad(lr=0.1), init=ps.Zeros(), dtype="bfloat16")
ROWS = 4000


class Source:
    """A store, and what going back to its newest checkpoint shows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rng = np.random.default_rng(0)
        self.step, self.digest, self.blocks = 0, 0, 0

    def work(self, steps: int, *, delete: int = 0, delete_later: int = 0) -> None:
        """Write rows at random, with compaction and a checkpoint at the end, then some that no
        checkpoint has, over blocks of the work before that none had.

        delete: so many rows go before the checkpoint, and delete_later after it.
        """
        with ps.open(self.path, [ADS, USERS], ram="4MiB", compact="10GiB") as store:
            if self.step:
                assert store.resume()[0] == self.step
            for _ in range(steps):
                self._write(store, 1000)
            store.delete("ads", self.rng.permutation(ROWS)[:delete])
            self.step += steps
            self.checkpoint(store)
            self._write(store, ROWS)
            store.delete("users", self.rng.permutation(ROWS)[:delete_later])
            store.cut()
        self.look()

    def checkpoint(self, store: ps.Store) -> None:
        for _ in store._upkeep.compactor.compact():
            pass
        layer = torch.full((3,), float(self.step))
        store.checkpoint(self.step, {"step": self.step, "layer": layer})

    def look(self) -> None:
        """Find out what the newest checkpoint shows."""
        with ps.open(self.path, None, ram="4MiB") as store:
            assert store.resume()[0] == self.step
            self.digest = store.digest()
            store._log.wait()
        self.blocks = sum(map(len, numbers(self.path).values()))

    def _write(self, store: ps.Store, count: int) -> None:
        keys = self.rng.permutation(ROWS)[:count]
        store.write("ads", keys, self.rng.random((count, 64)))
        store.write("users", keys[:50], self.rng.random((50, 4)))
        store.cut()  # or all of them would be in RAM until the checkpoint

    def snapshot(self) -> Source:
        """What it is now, of which to say later that it is not changed."""
        return copy.copy(self)

    def expect_at(self, path: Path) -> None:
        """What lies there opens, is sound, and resumes the newest checkpoint."""
        with ps.open(path, None, ram="4MiB") as store:
            assert store.check() == []
            found, state = store.resume()
            assert found == state["step"] == self.step
            assert state["layer"].tolist() == [float(self.step)] * 3
            assert store.digest() == self.digest
            assert store.check() == []


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """With one checkpoint."""
    source = Source(tmp_path / "s")
    source.work(4)
    return source


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "b"


def numbers(path: Path) -> dict[str, list[int]]:
    """By table, the numbers of all blocks there."""
    with closing(BlockLog(path, ["ads", "users"])) as log:
        return {t: log.numbers(t, 0, 1 << 40).tolist() for t in ("ads", "users")}


def tombstones(path: Path) -> dict[str, list[tuple[int, bytes]]]:
    with closing(BlockLog(path, ["ads", "users"])) as log:
        return {t: list(log.tombstones[t].records()) for t in ("ads", "users")}


def back_up_slowly(source: Source, target: Path, **options: Any) -> BackupReport:
    """Back up in batches of a segment."""
    return back_up(source.path, target, batch_bytes=1, **options)


def dying(function: Callable[[], object]) -> None:
    """Call it in a child, which must die of SIGKILL in it."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(1)  # an error must not go on in a second pytest
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class StoppedError(Exception):
    pass


# -- what it copies -------------------------------------------------------------------------------


def test_the_first_one_is_the_checkpoint(source: Source, target: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = back_up_slowly(source, target, progress=lambda *done: seen.append(done))
    source.expect_at(target)
    assert numbers(target) == numbers(source.path)
    assert (report.step, report.blocks_copied, report.blocks_removed) == (4, source.blocks, 0)
    assert 4080 * source.blocks < report.bytes_written < 4080 * source.blocks + 1000
    assert seen == sorted(seen) and seen[-1] == (source.blocks, source.blocks)


def test_the_next_one_copies_what_is_new_and_removes_what_is_gone(
    source: Source, target: Path
) -> None:
    back_up_slowly(source, target)
    before, removed = numbers(target), 0
    for _ in range(4):
        source.work(3)
        report = back_up_slowly(source, target)
        source.expect_at(target)
        after = numbers(target)
        assert after == numbers(source.path)
        new, old = (
            sum(len(set(b[t]) - set(a[t])) for t in a)
            for a, b in [(before, after), (after, before)]
        )
        assert (report.blocks_copied, report.blocks_removed) == (new, old)
        before, removed = after, removed + old
        again = back_up_slowly(source, target)
        assert (again.blocks_copied, again.blocks_removed) == (0, 0)
        source.expect_at(target)
    assert removed > 0


def test_deleted_rows_do_not_come_back(source: Source, target: Path) -> None:
    back_up_slowly(source, target)
    lengths = []
    for delete in (ROWS // 2, 0, ROWS, 0, 0):
        source.work(3, delete=delete, delete_later=delete // 4)
        back_up_slowly(source, target)
        source.expect_at(target)
        assert tombstones(target) == tombstones(source.path)
        lengths.append(len(tombstones(target)["ads"]))
        source.expect_at(target)
    assert lengths[-1] < max(lengths)  # some had done their work


def test_a_row_deleted_after_the_checkpoint_is_deleted(source: Source, target: Path) -> None:
    back_up_slowly(source, target)
    before = source.digest
    with ps.open(source.path, None, ram="4MiB") as store:
        source._write(store, ROWS)  # so that it is in a block that the checkpoint does not have
        store.delete("ads", np.arange(ROWS // 2))
    source.look()
    assert source.digest != before
    report = back_up_slowly(source, target)
    assert report.blocks_copied == 0
    source.expect_at(target)
    # Opening it made numbers count as used that the tombstones name; that is no use as a store.
    back_up_slowly(source, target)
    source.expect_at(target)


def test_looking_at_a_backup_does_not_hinder_the_next(source: Source, target: Path) -> None:
    with ps.open(source.path, None, ram="4MiB") as store, store._upkeep.compactor.paused():
        for _ in range(12):
            source._write(store, 1000)  # so that there is much to compact
        source.step += 1
        store.checkpoint(source.step, {"step": 5, "layer": torch.full((3,), 5.0)})
    source.look()
    back_up_slowly(source, target)
    with ps.open(target, None, ram="4MiB", compact="10GiB") as store:
        assert store._upkeep.compactor._tables[0].excess
        assert store.check() == [] and store.digest()
        store.resume()
        assert store.read("ads", np.arange(ROWS)).any()
    source.work(2)
    back_up_slowly(source, target)
    source.expect_at(target)


def test_a_backup_is_restored_by_using_it_or_backing_it_up(source: Source, tmp_path: Path) -> None:
    old, new, third = (tmp_path / name for name in ("old", "new", "third"))
    back_up_slowly(source, old)
    source.work(2)
    back_up_slowly(source, new)
    back_up_slowly(Source(new), third)
    source.expect_at(third)
    # The backup takes the source's place, and what has backups of that goes on from there.
    source.path = new
    source.work(2)
    report = back_up_slowly(source, old)
    source.expect_at(old)
    assert 0 < report.blocks_copied < source.blocks
    back_up_slowly(source, third)
    source.expect_at(third)


def test_the_source_is_given_a_lineage_and_nothing_else(source: Source, target: Path) -> None:
    back_up_slowly(source, target)
    file = source.path / "data.mdb"
    before = file.read_bytes()
    back_up_slowly(source, target)
    assert file.read_bytes() == before
    with closing(BlockLog(source.path, ["ads", "users"])) as log:
        log.forget([LINEAGE])
    back_up_slowly(source, target.with_name("c"))  # a store of an older version
    back_up_slowly(source, target.with_name("c"))
    source.expect_at(target.with_name("c"))
    source.expect_at(source.path)


# -- what stops it --------------------------------------------------------------------------------


@pytest.mark.parametrize("earlier", [False, True])
def test_wherever_it_stops_the_earlier_one_stands_and_the_next_goes_on(
    source: Source, target: Path, earlier: bool
) -> None:
    if earlier:
        back_up_slowly(source, target)
    was = source.snapshot()
    source.work(3, delete=100, delete_later=100)
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= 2:
            raise StoppedError

    copied, report = 0, None
    while report is None:
        calls = 0
        try:
            report = back_up_slowly(source, target, progress=stop)
        except StoppedError:
            copied += 1
            if earlier and copied == 1:
                was.expect_at(target)  # removes what does not count
    assert copied > 1
    source.expect_at(target)
    assert numbers(target) == numbers(source.path)
    assert report.blocks_copied < 200  # the others were there


def killed_in_blocks(source: Source, target: Path) -> None:
    back_up_slowly(source, target, progress=lambda done, total: kill() if done > 100 else None)


def killed_before_the_commit(source: Source, target: Path) -> None:
    ps.backup.Checkpoints.newest_facts = lambda *_: kill()  # type: ignore[assignment,method-assign]
    back_up_slowly(source, target)


def killed_after_the_commit(source: Source, target: Path) -> None:
    ps.backup._Backup.trim = lambda _: kill()  # type: ignore[assignment,method-assign]
    back_up_slowly(source, target)


def killed_in_trimming(source: Source, target: Path) -> None:
    trim = Replica.trim

    def some(replica: Replica, end: int) -> Iterator[int]:
        yield next(trim(replica, end))
        kill()

    Replica.trim = some  # type: ignore[method-assign]
    back_up_slowly(source, target)


def test_kill_9_in_a_loop(source: Source, target: Path) -> None:
    back_up_slowly(source, target)
    for i, die in enumerate(
        (
            killed_in_blocks, killed_before_the_commit, killed_after_the_commit,
            killed_in_trimming, killed_in_blocks, killed_in_trimming,
        )
    ):  # fmt: skip
        before = source.snapshot()
        source.work(3, delete=200, delete_later=100)
        dying(lambda die=die: die(source, target))  # type: ignore[misc]
        # Looked at in a copy: to open it removes what the next run goes on from.
        seen = target.with_name(f"seen{i}")
        shutil.copytree(target, seen)
        shown = source if die in (killed_after_the_commit, killed_in_trimming) else before
        shown.expect_at(seen)
        back_up_slowly(source, target)
        source.expect_at(target)
        assert numbers(target) == numbers(source.path)


def test_the_first_one_may_be_killed_as_often_as_it_likes(source: Source, target: Path) -> None:
    for die in (killed_in_blocks, killed_before_the_commit, killed_in_blocks):
        dying(lambda die=die: die(source, target))  # type: ignore[misc]
        with ps.open(target, None, ram="4MiB") as store, pytest.raises(StoreError):
            store.resume()
    dying(lambda: killed_in_blocks(source, target))
    report = back_up_slowly(source, target)
    assert report.blocks_copied < source.blocks
    source.expect_at(target)


def test_blocks_that_a_crash_left_in_the_backup_are_not_taken_for_the_sources(
    source: Source, target: Path
) -> None:
    back_up_slowly(source, target)

    def crash() -> None:
        store = ps.open(target, None, ram="4MiB")
        store.write("ads", np.arange(ROWS), np.full((ROWS, 64), 5.0))
        store.stacks["ads"].hierarchy.flush()
        kill()

    dying(crash)
    assert len(numbers(target)["ads"]) > len(numbers(source.path)["ads"])
    source.work(1)
    back_up_slowly(source, target)
    source.expect_at(target)


def test_state_that_a_killed_one_left_does_not_get_into_a_checkpoint(
    source: Source, target: Path
) -> None:
    back_up_slowly(source, target)
    with ps.open(source.path, None, ram="4MiB") as store:
        store.checkpoint(9, {"x": torch.arange(5_000_000)})  # three pieces
    dying(lambda: killed_before_the_commit(source, target))
    with ps.open(target, None, ram="4MiB") as store:
        store.checkpoint(7, {"x": torch.arange(3)})
        assert store.resume()[1]["x"].tolist() == [0, 1, 2]


def test_a_damaged_block_is_named_and_the_earlier_one_stands(source: Source, target: Path) -> None:
    back_up_slowly(source, target)
    was = source.snapshot()
    source.work(2)
    number = numbers(source.path)["ads"][-40]
    file = source.path / "data.mdb"
    sound = file.read_bytes()
    damaged, at = bytearray(sound), -1
    with closing(BlockLog(source.path, ["ads", "users"])) as log:
        block = np.zeros(1, ADS.shape.dtype)
        assert log.read("ads", np.array([number]), block) == []
    while (at := sound.find(block["records"].tobytes()[:200], at + 1)) >= 0:
        damaged[at + 100] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(CorruptError, match=rf"table 'ads'.*block {number}, .*damaged"):
        back_up_slowly(source, target)
    was.expect_at(target)
    file.write_bytes(sound)
    back_up_slowly(source, target)
    source.expect_at(target)


def test_a_small_disk_is_seen_before_anything_is_copied(
    source: Source,
    small_disk: Path,  # noqa: F811
) -> None:
    (small_disk / "other").write_bytes(bytes(4 << 20))
    with pytest.raises(DiskFullError) as error:
        back_up_slowly(source, small_disk / "b", progress=lambda *_: pytest.fail("copied some"))
    (small_disk / "other").unlink()
    back_up_slowly(source, small_disk / "b")
    source.expect_at(small_disk / "b")
    assert "\n" not in str(error.value) and str(small_disk) in str(error.value)


# -- what it refuses ------------------------------------------------------------------------------


def refuse(source: Source, target: Path, kind: type[Exception], words: str) -> None:
    """An error of one line, after which both folders are as they were."""
    before = [(path / "data.mdb").read_bytes() for path in (source.path, target)]
    with pytest.raises(kind, match=words) as error:
        back_up_slowly(source, target)
    assert error.type is kind
    assert "\n" not in str(error.value)
    assert [(path / "data.mdb").read_bytes() for path in (source.path, target)] == before


def test_a_store_of_its_own_is_refused(source: Source, target: Path) -> None:
    Source(target).work(1)
    refuse(source, target, StoreError, "found a store that is none")
    with ps.open(target.with_name("c"), [ADS], ram="4MiB"):
        pass
    refuse(source, target.with_name("c"), MismatchError, "tables")


USES: dict[str, Callable[[ps.Store], object]] = {
    "checkpoint": lambda store: store.checkpoint(9),
    "write": lambda store: store.write("ads", np.arange(5), np.ones((5, 64))),
    "delete": lambda store: store.delete("ads", np.arange(5)),
}


@pytest.mark.parametrize("use", USES)
def test_a_backup_that_was_used_is_refused(source: Source, target: Path, use: str) -> None:
    back_up_slowly(source, target)
    with ps.open(target, None, ram="4MiB") as store:
        USES[use](store)
    refuse(source, target, StoreError, "used as a store")
    source.work(1)
    refuse(source, target, StoreError, "used as a store")


def test_the_backup_of_another_log_is_refused(source: Source, tmp_path: Path) -> None:
    other = Source(tmp_path / "other")
    other.work(4)
    back_up_slowly(other, tmp_path / "b")
    refuse(source, tmp_path / "b", MismatchError, "another store")


def test_a_copy_that_went_on_by_itself_is_refused(source: Source, tmp_path: Path) -> None:
    shutil.copytree(source.path, tmp_path / "copy")
    other = source.snapshot()
    other.path = tmp_path / "copy"
    back_up_slowly(source, tmp_path / "b")
    back_up_slowly(other, tmp_path / "b")  # still the same
    source.work(2)
    back_up_slowly(source, tmp_path / "b")
    refuse(other, tmp_path / "b", MismatchError, "older copy")  # one checkpoint behind
    other.work(2)
    refuse(other, tmp_path / "b", MismatchError, "older copy")
    other.work(2)
    refuse(other, tmp_path / "b", MismatchError, "older copy")
    source.work(2)
    back_up_slowly(source, tmp_path / "b")
    source.expect_at(tmp_path / "b")


def test_a_copy_made_while_the_store_was_open_is_refused(source: Source, target: Path) -> None:
    with ps.open(source.path, None, ram="4MiB") as store:
        source.checkpoint(store)
        shutil.copytree(source.path, target.with_name("copy"))
        source.checkpoint(store)
    back_up_slowly(source, target)
    refuse(Source(target.with_name("copy")), target, MismatchError, "older copy")


def test_a_copy_that_deleted_other_rows_is_refused(source: Source, tmp_path: Path) -> None:
    shutil.copytree(source.path, tmp_path / "copy")
    for path, key in ((source.path, 1), (tmp_path / "copy", 2)):
        with ps.open(path, None, ram="4MiB") as store:
            store.delete("ads", np.array([key]))
    source.look()
    back_up_slowly(source, tmp_path / "b")
    refuse(Source(tmp_path / "copy"), tmp_path / "b", MismatchError, "another store")


def test_after_compaction_a_store_is_another_one(source: Source, target: Path) -> None:
    back_up_slowly(source, target)
    shrink(source.path)
    refuse(source, target, MismatchError, "compacted")
    source.look()
    back_up_slowly(source, target.with_name("c"))
    source.expect_at(target.with_name("c"))


def test_what_is_no_store_is_refused(source: Source, target: Path) -> None:
    target.mkdir()
    (target / "file").touch()
    for folder in (target, target / "file"):
        with pytest.raises(ConfigError, match="found something else"):
            back_up_slowly(source, folder)
    assert [file.name for file in target.iterdir()] == ["file"]
    with pytest.raises(ConfigError, match="another folder"):
        back_up_slowly(source, source.path)
    with pytest.raises(StoreError, match="expected a store"):
        back_up(target, source.path)


def test_a_store_without_checkpoint_has_nothing_to_back_up(tmp_path: Path) -> None:
    with ps.open(tmp_path / "s", [ADS], ram="4MiB"):
        pass
    with pytest.raises(StoreError, match="expected a checkpoint"):
        back_up(tmp_path / "s", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_open_store_is_refused(source: Source, target: Path) -> None:
    back_up_slowly(source, target)
    for folder in (source.path, target):
        with ps.open(folder, None, ram="4MiB"), pytest.raises(LockedError):
            back_up_slowly(source, target)
