"""What the device itself gives: random reads at depth, and a plain file written and synced.

Reads are direct, 4 KiB, by threads that keep the GIL released (fio does the same where it is
installed). They stand for the most that any program could reach here.

Threads: the functions start their own and join them.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np

from storage.errors import ConfigError
from storage.tree import PAGE, pread

DEPTHS = (1, 2, 4, 8, 16, 32)


@nb.njit(nogil=True, cache=True)
def _read_pages(fd: Any, buffer: Any, pages: Any) -> Any:
    """Bytes that reading these pages gave."""
    total = 0
    for i in range(pages.shape[0]):
        total += pread(fd, buffer.ctypes.data, PAGE, pages[i] * PAGE)
    return total


def uncache(path: Path) -> None:
    """Drop a file, or those of a folder, from the page cache; nobody may have them mapped."""
    for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def random_reads(file: Path, depth: int, count: int, seed: int) -> float:
    """4 KiB reads a second at random places of a file, ``depth`` at a time.

    Raises: ConfigError on a file system without direct reads.
    """
    pages = np.random.default_rng(seed).integers(0, file.stat().st_size // PAGE, count)
    try:
        fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        raise ConfigError(
            f"{file}: expected a file system with direct reads, but {error.strerror}; "
            f"give --dir on the disk to measure"
        ) from error
    # A map of its own for each: direct reads want memory at the edge of a page.
    buffers = [np.frombuffer(mmap.mmap(-1, PAGE), np.uint8) for _ in range(depth)]
    _read_pages(fd, buffers[0], pages[:1])  # compiled, or loaded, before the clock starts
    try:
        with ThreadPoolExecutor(depth) as threads:
            parts = zip(buffers, np.array_split(pages, depth), strict=True)
            started = time.perf_counter()
            futures = [threads.submit(_read_pages, fd, buffer, part) for buffer, part in parts]
            total = sum(future.result() for future in futures)
            seconds = time.perf_counter() - started
    finally:
        os.close(fd)
    if total != count * PAGE:
        raise ConfigError(f"{file}: expected {count * PAGE} bytes of it, got {total}")
    return count / seconds


def fio_reads(file: Path, depth: int, seconds: float) -> float:
    """The same by fio: 4 KiB reads a second, ``depth`` threads, direct."""
    command = (
        f"fio --name=reads --rw=randread --bs=4k --direct=1 --ioengine=psync --thread --readonly "
        f"--numjobs={depth} --group_reporting --time_based --runtime={seconds} "
        f"--output-format=json --filename={file}"
    )
    found = subprocess.run(command.split(), capture_output=True, check=True, timeout=600)
    return float(json.loads(found.stdout)["jobs"][0]["read"]["iops"])


def read_rates(file: Path, count: int, seed: int) -> dict[int, float]:
    """Reads a second by depth; about ``count`` are done at each."""
    if shutil.which("fio"):
        return {depth: fio_reads(file, depth, 1.0) for depth in DEPTHS}
    return {
        depth: random_reads(file, depth, max(depth, count * depth // DEPTHS[-1]), seed + depth)
        for depth in DEPTHS
    }


def plain_appends(file: Path, size: int, chunk: int) -> float:
    """Bytes a second of a plain file that is written and synced as the log is.

    Twice for each ``chunk``: LMDB syncs the pages, then the page that makes them count.
    """
    data = np.random.default_rng(0).integers(0, 256, chunk, np.uint8).tobytes()
    with open(file, "wb", buffering=0) as out:
        started = time.perf_counter()
        out.write(data[:PAGE])
        for done in range(0, size, chunk):
            out.write(data[: min(chunk, size - done)])
            os.fdatasync(out.fileno())
            os.pwrite(out.fileno(), data[:PAGE], 0)
            os.fdatasync(out.fileno())
        seconds = time.perf_counter() - started
    file.unlink()
    return size / seconds
