"""Checksum: the CRC-32C of many blocks at once, by the processor's own instruction if it has one.

The kernel releases the GIL, so that checksums of blocks that come or go do not hold up training;
through google-crc32c, one block at a time, they take the GIL for 0.5 to 1.6 us each.

Threads: no state.
"""

from __future__ import annotations

import platform
from typing import Any

import google_crc32c
import llvmlite.binding as llvm
import numba as nb
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

_ONES, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)
HAS_INSTRUCTION = platform.machine() == "x86_64" and bool(
    llvm.get_host_cpu_features().get("sse4.2")
)
"""Whether this processor has the instruction that the kernel uses."""


def _instruction(name: str, bits: int) -> Any:
    """The instruction on words of so many bits, for kernels."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(bits)
        kind = ir.FunctionType(word, [word, word])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return codegen


@intrinsic
def _step_64(typingctx: Any, crc: Any, word: Any) -> Any:
    return types.uint64(types.uint64, types.uint64), _instruction("llvm.x86.sse42.crc32.64.64", 64)


@intrinsic
def _step_32(typingctx: Any, crc: Any, word: Any) -> Any:
    return types.uint32(types.uint32, types.uint32), _instruction("llvm.x86.sse42.crc32.32.32", 32)


@nb.njit(nogil=True, cache=True)
def _checksums(words: Any, found: Any) -> None:
    """words: (n, k) uint32; the first of each row is left out."""
    for i in range(words.shape[0]):
        row, crc, place = words[i], _ONES, 1
        while place + 1 < row.shape[0]:
            crc = _step_64(crc, np.uint64(row[place]) | np.uint64(row[place + 1]) << _32)
            place += 2
        if place < row.shape[0]:
            crc = np.uint64(_step_32(np.uint32(crc), row[place]))
        found[i] = np.uint32(crc ^ _ONES)


def checksums(values: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(n,) CRC-32C of each row but for its first four bytes, where its own checksum lies.

    values: (n, size) uint8, contiguous; size is a multiple of 4.
    """
    if not HAS_INSTRUCTION:
        return np.array([google_crc32c.value(row[4:]) for row in values], np.uint32)
    found = np.empty(len(values), np.uint32)
    _checksums(values.view(np.uint32), found)
    return found
