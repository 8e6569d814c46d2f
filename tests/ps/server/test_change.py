"""Change: what a message asks for, and what no message may ask for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ps
from ps.partition import Partition
from ps.server.change import (
    KINDS,
    MOST_ROWS,
    Delete,
    Owned,
    Push,
    Write,
    read_record,
    record_of,
    resident,
)
from ps.wire import terrace_pb2 as wire
from ps.wire.frame import Frame
from storage.errors import ConfigError, KeyRangeError, RefusedError
from tests.ps.serving import ADS, TABLES, USERS, belonging

COUNTED = ps.Table("counted", dim=2, admission=ps.ExactCount(times=2))
OWNED = Owned({table.name: table for table in (*TABLES, COUNTED)}, Partition(1), 0)
KEYS = np.arange(10, 20, dtype=np.uint64)
VALUES = np.ones((10, ADS.dim), np.float32)
WHOLE = np.ones((10, ADS.width), np.float32)


def came(kind: str, message: Any, array: Any = b"") -> Frame[Any]:
    return KINDS[kind][0](Frame(message, array).pack())


def read(kind: str, message: Any, array: Any = b"", owned: Owned = OWNED) -> Any:
    return KINDS[kind][1](came(kind, message, array), owned)


def good_push(**more: Any) -> Any:
    plain: dict[str, Any] = {"table": "ads", "rows": 10, "step": 3, "lr": 0.5, "scale": 2.0}
    return wire.PushRequest(**{**plain, "keys": KEYS.tobytes(), "clock": 9, **more})


def good_write(**more: Any) -> Any:
    plain: dict[str, Any] = {"table": "ads", "rows": 10, "width": ADS.dim}
    return wire.WriteRequest(**{**plain, "keys": KEYS.tobytes(), **more})


def test_good_messages_are_read_as_they_were_meant() -> None:
    push = read("Push", good_push(), VALUES)
    assert isinstance(push, Push)
    assert (push.table, push.rows, push.lr, push.step, push.scale, push.clock) == (
        "ads", 10, 0.5, 3, 2.0, 9,
    )  # fmt: skip
    assert np.array_equal(push.keys, KEYS)
    assert np.array_equal(push.gradients, VALUES)
    assert push.uses.tolist() == [1] * 10
    uses = np.arange(10, dtype=np.int32)
    counted = good_push(table="counted", uses=uses.tobytes())
    assert np.array_equal(read("Push", counted, VALUES[:, :2].copy()).uses, uses)
    write = read("Write", good_write(), VALUES)
    assert isinstance(write, Write)
    assert write.steps is None
    steps = np.full(10, 4, np.uint32)
    whole = read(
        "Write", good_write(width=ADS.width, steps=steps.tobytes()), np.ones((10, 8), "f4")
    )
    assert np.array_equal(whole.steps, steps)
    delete = read("Delete", wire.DeleteRequest(table="ads", rows=10), KEYS)
    assert isinstance(delete, Delete)
    assert np.array_equal(delete.keys, KEYS)
    nothing = read("Push", wire.PushRequest(clock=5))
    assert (nothing.table, nothing.rows, nothing.clock) == (None, 0, 5)
    assert read("Delete", wire.DeleteRequest(table="ads")).keys.size == 0


def with_key(at: int, key: int) -> bytes:
    keys = KEYS.copy()
    keys[at] = key
    return keys.tobytes()


BAD: list[tuple[str, Callable[[], Any], Any, str]] = [
    ("Push", lambda: good_push(table="none"), VALUES, "table 'none': expected one of"),
    ("Push", lambda: good_push(table="x" * 9000), VALUES, "expected one of"),
    ("Push", lambda: good_push(table=""), VALUES, "expected no rows"),
    ("Push", lambda: good_push(rows=9), VALUES, "gradients: expected 144 bytes"),
    ("Push", lambda: good_push(rows=2**32 - 1), VALUES, "gradients: expected"),
    ("Push", lambda: good_push(keys=KEYS.tobytes()[:-1]), VALUES, "keys: expected 80 bytes"),
    ("Push", lambda: good_push(keys=with_key(7, 12)), VALUES, "each once, got 12 again at 7"),
    ("Push", lambda: good_push(uses=bytes(40)), VALUES, "uses: table 'ads' admits all"),
    ("Push", lambda: good_push(table="counted"), VALUES[:, :2].copy(), "uses: expected 40 bytes"),
    ("Push", lambda: good_push(table="counted", uses=b"\xff" * 40), VALUES[:, :2].copy(),
     "uses: expected 0 or more"),
    ("Push", lambda: good_push(step=0), VALUES, "step: expected 1"),
    ("Push", lambda: good_push(step=2**32), VALUES, "step: expected 1"),
    ("Push", lambda: good_push(scale=np.nan), VALUES, "scale: expected a finite"),
    ("Push", lambda: good_push(scale=-np.inf), VALUES, "scale: expected a finite"),
    ("Push", lambda: good_push(lr=np.nan), VALUES, "lr is nan"),
    ("Push", lambda: good_push(lr=np.inf), VALUES, "lr is inf"),
    ("Push", lambda: good_push(lr=-1.0), VALUES, "lr is -1"),
    ("Push", lambda: good_push(lr=1e300), VALUES, "lr is 1e"),
    ("Push", good_push, VALUES[:9], "gradients: expected 160 bytes"),
    ("Push", good_push, b"", "gradients: expected 160 bytes"),
    ("Write", lambda: good_write(width=3), VALUES, "expected one of these, got 3"),
    ("Write", lambda: good_write(width=2**32 - 1, rows=2**32 - 1), VALUES, "expected one of"),
    ("Write", lambda: good_write(width=ADS.width), VALUES, "values: expected 320 bytes"),
    ("Write", lambda: good_write(steps=bytes(40)), VALUES[:9], "values: expected 160"),
    ("Write", lambda: good_write(steps=bytes(36)), VALUES, "steps: expected 40 bytes"),
    ("Delete", lambda: wire.DeleteRequest(table="ads", rows=9), KEYS, "keys: expected 72"),
    ("Delete", lambda: wire.DeleteRequest(table="ads", rows=MOST_ROWS + 1), KEYS, "at most"),
    ("Delete", lambda: wire.DeleteRequest(rows=10), KEYS, "expected one of"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "message", "array", "words"), BAD, ids=lambda each: None)
def test_what_cannot_be_meant_is_refused_in_one_line(
    kind: str, message: Callable[[], Any], array: Any, words: str
) -> None:
    with pytest.raises((RefusedError, ConfigError)) as caught:
        read(kind, message(), array)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_keys_beyond_a_table_and_of_other_shards_are_refused() -> None:
    far = np.array([1, 5000], np.uint64)
    with pytest.raises(KeyRangeError, match="5000"):
        read("Delete", wire.DeleteRequest(table="users", rows=2), far)
    mine, theirs = belonging(1, 4, 5), belonging(2, 4, 1)
    owned = Owned(OWNED.tables, Partition(4), 1)
    assert read("Delete", wire.DeleteRequest(table="ads", rows=5), mine, owned).keys[4] == mine[4]
    with pytest.raises(RefusedError, match=f"shard 1 of 4, got {theirs[0]} at 5"):
        both = np.concatenate((mine, theirs))
        read("Delete", wire.DeleteRequest(table="ads", rows=6), both, owned)


def test_a_record_of_the_redo_log_is_the_change_again() -> None:
    for kind, message, array in (
        ("Push", good_push(), VALUES),
        ("Write", good_write(), VALUES),
        ("Delete", wire.DeleteRequest(table="users", rows=10), KEYS),
    ):
        record = b"".join(record_of(kind, came(kind, message, array)))
        frame, change = read_record(record, OWNED)
        assert frame.message.SerializeToString()
        assert type(change).__name__ == kind
        assert np.array_equal(change.keys, KEYS)  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match="record of kind b'X'"):
        read_record(b"X", OWNED)
    with pytest.raises(RefusedError, match="lr"):
        read_record(b"".join(record_of("Push", came("Push", good_push(lr=-1.0), VALUES))), OWNED)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 4096])
def test_one_repeated_key_among_many_is_found(count: int) -> None:
    keys = np.random.default_rng(count).permutation(np.arange(count, dtype=np.uint64) << 40)
    assert len(OWNED.keys(ADS, keys, count)) == count
    for first in {0, count // 2} if count > 1 else ():
        again = keys.copy()
        again[-1] = again[first]
        if first != count - 1:
            with pytest.raises(RefusedError, match=f"again at {count - 1}"):
                OWNED.keys(ADS, again, count)


def test_rows_are_resident_a_quarter_of_the_cache_at_once(tmp_path: Path) -> None:
    with ps.open(tmp_path, [ADS, USERS], ram="1600KiB", threads=1) as store:
        top = store.stacks["ads"].top
        keys, seen = np.arange(2 * top.limit, dtype=np.uint64), 0
        for piece, positions in resident(store, "ads", keys):
            assert len(positions) == top.pinned <= top.limit // 4 + 1
            assert np.array_equal(top.keys_at(positions), keys[piece])
            seen += len(positions)
        assert seen == len(keys)
        assert top.pinned == 0
        assert top.limit < len(keys)
        with closing(resident(store, "ads", keys)) as pieces:
            next(pieces)  # left in the middle
        store.settle()
        assert top.pinned == 0
        # All in the cache: in one piece, and nobody moves them meanwhile.
        some = top.keys_at(top.occupied()[:100])
        ((piece, positions),) = resident(store, "ads", some)
        assert piece == slice(0, 100)
        assert np.array_equal(top.keys_at(positions), some)
