from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from ps.server.heap import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory(1 << 30)
for _ in range(3):
    bytes(bytearray(4 << 20))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    pieces = [bytearray(5 << 20) for _ in range(3)]
    del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_memory_of_a_message_is_there_for_the_next() -> None:
    def faults(way: str) -> int:
        command = [sys.executable, "-c", FAULTS, way]
        return int(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)

    assert resource.getpagesize() > 0
    assert 4 * faults("kept") < faults("given back")
