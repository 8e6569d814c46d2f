"""Recorder: a trace of all batches so far at every moment; a full disk ends it, nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ConfigError
from storage.recorder import Recorder

ROOT = Path(__file__).resolve().parents[2]
keys = st.lists(st.integers(0, 2**64 - 1), max_size=6).map(lambda each: np.array(each, np.uint64))


@given(st.lists(st.tuples(st.lists(keys, max_size=2), st.lists(keys, max_size=2)), max_size=6))
def test_the_file_has_every_batch_after_each_one(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[list[np.ndarray], ...]]
) -> None:
    path = tmp_path_factory.mktemp("record") / "t.npy"
    recorder = Recorder(path, ["ads", "users"])
    want: list[tuple[int, int, int]] = []
    for number, (ads, users) in enumerate(batches):
        recorder.staged({"ads": ads, "users": users}, {})
        for table, lookups in enumerate((ads, users)):
            want += [(number, key, table) for each in lookups for key in each.tolist()]
        # Read while it is open, as after a kill.
        assert np.load(path, allow_pickle=False).tolist() == want
    assert recorder.accesses == len(want)
    recorder.close()
    recorder.close()
    assert recorder.ended


def test_one_table_needs_no_column_and_large_batches_come_whole(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t.npy", ["ads"])
    batch = np.arange(100_000, dtype=np.uint64)[::-1].copy()
    recorder.staged({"ads": [batch[:70_000], batch[70_000:]]}, {})
    recorder.close()
    recorder.staged({"ads": [batch]}, {})
    records = np.load(tmp_path / "t.npy", allow_pickle=False)
    assert records.dtype.names == ("batch", "key")
    assert np.array_equal(records["key"], batch) and not records["batch"].any()


def test_records_that_the_header_does_not_count_are_not_seen(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    recorder = Recorder(path, ["ads"])
    recorder.staged({"ads": [np.array([7], np.uint64)]}, {})
    recorder.close()
    with path.open("ab") as file:
        file.write(b"half a rec")
    assert np.load(path, allow_pickle=False)["key"].tolist() == [7]


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("mine")
    with pytest.raises(ConfigError, match=r"t: expected a new file to record to, got one"):
        Recorder(tmp_path / "t", ["ads"])
    assert (tmp_path / "t").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"u: cannot be written \(No such file"):
        Recorder(tmp_path / "no" / "u", ["ads"])


FULL = """
import resource, signal, sys, warnings
import numpy as np
from storage.recorder import Recorder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
recorder = Recorder(sys.argv[1], ["ads"])
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for batch in range(100):
        recorder.staged({"ads": [np.full(50, batch, np.uint64)]}, {})
print(len(seen), recorder.ended, recorder.accesses, seen[0].message)
"""


def test_a_full_disk_ends_it_with_one_warning_and_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    warnings, ended, accesses, message = done.stdout.strip().split(" ", 3)
    assert (warnings, ended, accesses) == ("1", "True", "400")
    assert f"{path}: recording ended before batch 8 (File too large), 400 accesses" in message
    keys = np.load(path, allow_pickle=False)["key"]
    assert keys.tolist() == [batch for batch in range(8) for _ in range(50)]


KILLED = """
import os, signal, sys
import numpy as np
from storage.recorder import Recorder
recorder = Recorder(sys.argv[1], ["ads"])
for batch in range(3):
    recorder.staged({"ads": [np.full(2, batch, np.uint64)]}, {})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_all_its_batches(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert np.load(path, allow_pickle=False)["key"].tolist() == [0, 0, 1, 1, 2, 2]
