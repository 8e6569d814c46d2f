"""Generation: what was synced is read again, a torn end is no damage, and damage is found."""

from __future__ import annotations

import errno
import itertools
import os
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ps.server.generation import MOST_BYTES, Generation, keep, read_records, remove
from storage.errors import ConfigError, CorruptError, DiskFullError, StoreError

FILE_BYTES, RECORD_BYTES = 28, 40
NUMBER = 7


def read(path: Path, *, newest: bool = True) -> tuple[list[bytes], int]:
    """The records, and how many bytes count."""
    records, reading = [], read_records(path, NUMBER, newest=newest)
    while True:
        try:
            records.append(next(reading))
        except StopIteration as end:
            return records, end.value


def make(path: Path, payloads: Sequence[bytes], *, synced: int) -> list[int]:
    """A file of these records, the first ``synced`` of them synced one by one: where each ends."""
    generation, ends = Generation(path, NUMBER), []
    for payload in payloads:
        generation.append([payload])
        ends.append(generation.bytes)
        if len(ends) <= synced:
            generation.sync()
            generation.synced = len(ends)
    generation.close()
    return ends


def test_records_are_read_as_they_were_appended(tmp_path: Path) -> None:
    generation = Generation(tmp_path / "g", NUMBER)
    words = memoryview(struct.pack("=4I", 1, 2, 3, 4)).cast("I")
    large = random.Random(0).randbytes(3 << 20)
    for parts in ([b"one"], [], [b"", b"t", memoryview(b"wo")], [words], [large, b"!"]):
        generation.append(parts)
    # More parts than the system takes in one call.
    generation.append([b"%04d" % part for part in range(2500)])
    assert generation.records == 6
    generation.close()
    records, size = read(tmp_path / "g", newest=False)
    numbers = b"".join(b"%04d" % part for part in range(2500))
    assert records == [b"one", b"", b"two", bytes(words), large + b"!", numbers]
    assert size == generation.bytes == (tmp_path / "g").stat().st_size


def test_a_record_may_be_32_mib_and_not_a_byte_more(tmp_path: Path) -> None:
    generation = Generation(tmp_path / "g", NUMBER)
    with pytest.raises(ConfigError, match="at most, got 33,554,433; split the push"):
        generation.append([bytes(MOST_BYTES), b"!"])
    generation.append([bytes(MOST_BYTES)])
    generation.close()
    assert read(tmp_path / "g")[0] == [bytes(MOST_BYTES)]


@pytest.mark.parametrize("synced", [0, 2, 4])
def test_an_end_torn_at_any_byte_is_cut_off_where_it_may_be_torn(
    tmp_path: Path, synced: int
) -> None:
    payloads = [b"first", b"", b"third one", b"4"]
    ends = make(tmp_path / "whole", payloads, synced=synced)
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "torn"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        there = sum(end <= size for end in ends)
        assert read(path) == (
            payloads[:there],
            [0 if size < FILE_BYTES else FILE_BYTES, *ends][there],
        )
        if size not in (FILE_BYTES, *ends):
            with pytest.raises(CorruptError, match=rf"{path}: expected .* at byte \d+"):
                read(path, newest=False)


@pytest.mark.parametrize("lost", [1, 7])
def test_of_what_was_not_synced_any_sectors_may_be_missing(tmp_path: Path, lost: int) -> None:
    payloads = [random.Random(n).randbytes(700) for n in range(8)]
    path = tmp_path / "g"
    ends = make(path, payloads, synced=3)
    whole, chosen = path.read_bytes(), random.Random(lost)
    for _ in range(200):
        content = bytearray(whole)
        begin = -(-ends[2] // 512)
        for sector in chosen.sample(range(begin, len(whole) // 512 + 1), lost):
            place = slice(sector * 512, min(len(whole), sector * 512 + 512))
            content[place] = bytes(len(content[place]))
        path.write_bytes(content)
        records, size = read(path)
        assert len(records) >= 3 and records == payloads[: len(records)]
        assert len(records) < 8 and size == ends[len(records) - 1]


def test_zeros_behind_the_end_are_a_torn_end(tmp_path: Path) -> None:
    ends = make(tmp_path / "g", [b"a", b"b"], synced=2)
    with open(tmp_path / "g", "ab") as file:
        file.write(bytes(5000))
    assert read(tmp_path / "g") == ([b"a", b"b"], ends[-1])


def test_every_flipped_bit_is_found_or_costs_only_the_last_record(tmp_path: Path) -> None:
    payloads = [b"first", b"", b"third one", b"4"]
    path = tmp_path / "g"
    ends = make(path, payloads, synced=4)
    whole = path.read_bytes()
    for place, bit in itertools.product(range(len(whole)), range(8)):
        content = bytearray(whole)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        if place >= ends[-2]:
            # Nothing was written after it that could say that it was synced.
            assert read(path) == (payloads[:-1], ends[-2])
        else:
            with pytest.raises(CorruptError):
                read(path)
        with pytest.raises(CorruptError):
            read(path, newest=False)


def test_damage_names_the_file_and_the_place_after_the_records_before(tmp_path: Path) -> None:
    path = tmp_path / "g"
    ends = make(path, [b"first", b"second", bytes(3 << 20), b"4"], synced=4)
    content = bytearray(path.read_bytes())
    content[ends[1] + RECORD_BYTES + 99] ^= 1
    path.write_bytes(content)
    reading = read_records(path, NUMBER, newest=True)
    assert [next(reading), next(reading)] == [b"first", b"second"]
    with pytest.raises(CorruptError, match=rf"{path}: expected record 2 .* at byte {ends[1]},"):
        next(reading)


def test_a_mark_between_two_searched_stretches_is_found(tmp_path: Path) -> None:
    path = tmp_path / "g"
    for offset in range(9):
        path.unlink(missing_ok=True)
        # The search for marks begins at the damaged record, a MiB at a time.
        make(path, [bytes((1 << 20) - RECORD_BYTES - offset), b"behind it"], synced=1)
        content = bytearray(path.read_bytes())
        content[FILE_BYTES + RECORD_BYTES] ^= 1
        path.write_bytes(content)
        with pytest.raises(CorruptError, match="expected record 0"):
            read(path)


def test_a_payload_that_holds_another_log_is_no_record(tmp_path: Path) -> None:
    make(tmp_path / "other", [b"x" * 50, b"y"], synced=2)
    path = tmp_path / "g"
    make(path, [b"a", (tmp_path / "other").read_bytes()], synced=1)
    with open(path, "r+b") as file:
        file.seek(FILE_BYTES + 2 * RECORD_BYTES + 1)
        file.write(b"~")
    assert read(path)[0] == [b"a"]


def test_a_file_under_another_number_is_damage(tmp_path: Path) -> None:
    make(tmp_path / "g", [b"a"], synced=1)
    with pytest.raises(CorruptError, match="expected a header of the redo log at byte 0"):
        list(read_records(tmp_path / "g", NUMBER + 1, newest=True))


def test_a_record_that_was_put_twice_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "g"
    ends = make(path, [b"a", b"b", b"c"], synced=3)
    whole = path.read_bytes()
    path.write_bytes(whole[: ends[1]] + whole[ends[0] : ends[1]] + whole[ends[1] :])
    with pytest.raises(CorruptError, match="expected record 2"):
        read(path)


def test_what_does_not_count_is_cut_off_and_an_unfinished_file_removed(tmp_path: Path) -> None:
    ends = make(tmp_path / "g", [b"a", b"b"], synced=1)
    keep(tmp_path / "g", ends[0])
    assert read(tmp_path / "g", newest=False) == ([b"a"], ends[0])
    keep(tmp_path / "g", ends[0])
    assert read(tmp_path / "g", newest=False) == ([b"a"], ends[0])
    keep(tmp_path / "g", 0)
    assert not (tmp_path / "g").exists()


def test_a_file_that_exists_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(b"mine")
    with pytest.raises(StoreError, match="File exists"):
        Generation(tmp_path / "g", NUMBER)
    assert (tmp_path / "g").read_bytes() == b"mine"
    remove(tmp_path / "g")
    with pytest.raises(StoreError, match="No such file"):
        remove(tmp_path / "g")


Write = Callable[[int, Sequence[memoryview], int], int]


def halved(write: Write) -> Write:
    """The system's call, on a disk with room for half."""

    def writes(file: int, parts: Sequence[memoryview], place: int) -> int:
        whole = b"".join(parts)
        return write(file, [memoryview(whole[: len(whole) // 2])], place)

    return writes


def refused(number: int) -> Callable[[Write], Write]:
    def refuse(write: Write) -> Write:
        def writes(file: int, parts: Sequence[memoryview], place: int) -> int:
            raise OSError(number, os.strerror(number))

        return writes

    return refuse


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (halved, DiskFullError),
        (refused(errno.ENOSPC), DiskFullError),
        (refused(errno.EDQUOT), DiskFullError),
        (refused(errno.EFBIG), DiskFullError),
        (refused(errno.EIO), StoreError),
    ],
)
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Write], Write],
    kind: type[StoreError],
) -> None:
    path = tmp_path / "g"
    generation = Generation(path, NUMBER)
    generation.append([b"before"])
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", fault(os.pwritev))
        with pytest.raises(StoreError, match=rf"{path}: expected a disk that takes") as raised:
            generation.append([b"lost" * 100])
        assert type(raised.value) is kind
        with pytest.raises(StoreError):
            Generation(tmp_path / "another", NUMBER)
    assert not (tmp_path / "another").exists()
    assert path.stat().st_size == generation.bytes
    generation.append([b"after"])
    generation.close()
    assert read(path, newest=False)[0] == [b"before", b"after"]
