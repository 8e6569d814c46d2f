"""What kernels are compiled with: options, and what numba's own language cannot say.

Threads: no state. Kernels release the GIL.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# error_model: Python's division looks for 0 and raises, which keeps loops from running in lanes.
kernel = nb.njit(nogil=True, cache=True, error_model="numpy")
"""Decorates a kernel: a function that Python calls."""

inlined = nb.njit(nogil=True, cache=True, error_model="numpy", forceinline=True)
"""Decorates a part of kernels. Inlined, since across calls loops lose what they know of arrays."""

LINE_BYTES = 64
"""Of a cache line on the processors that matter; another size costs speed only."""

_ir = cgutils.ir  # llvmlite, in the version that is numba's own choice


@intrinsic
def unowned(typingctx: Any, arrays: Any) -> Any:
    """The same arrays, a tuple, without owners: valid while the given ones live (see `keep`).

    numba counts references where an array is passed on, atomically, inside loops: that made the
    fused update 3 times as slow while all its rows were in the cache (11.5 against 3.7 ms).
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        borrowed = []
        for index, array in enumerate(arrays):
            owned = builder.extract_value(args[0], index)
            view = context.make_array(array)(context, builder, owned)
            view.meminfo = cgutils.get_null_value(view.meminfo.type)
            view.parent = cgutils.get_null_value(view.parent.type)
            borrowed.append(view._getvalue())
        return context.make_tuple(builder, signature.return_type, borrowed)

    return arrays(arrays), codegen


@intrinsic
def keep(typingctx: Any, array: Any) -> Any:
    """Nothing, but the array lives until here. Arguments of a kernel live as long as its call."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), codegen


@intrinsic
def _fetch_line(typingctx: Any, array: Any, row: Any, offset_bytes: Any) -> Any:
    """llvm.prefetch, for a read, into every level, at the byte offset in the row."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        row_bytes = cgutils.unpack_tuple(builder, view.strides)[0]
        pointer, number = _ir.IntType(8).as_pointer(), _ir.IntType(32)
        start = builder.bitcast(view.data, pointer)
        line = builder.gep(start, [builder.add(builder.mul(args[1], row_bytes), args[2])])
        declared = _ir.FunctionType(_ir.VoidType(), [pointer, number, number, number])
        fetch = cgutils.get_or_insert_function(builder.module, declared, "llvm.prefetch.p0")
        builder.call(fetch, [line, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


@inlined
def fetch_row(array: Any, row: Any) -> None:
    """Asks for all lines of ``array[row]``; array: (C, W) of 4-byte numbers, C-contiguous.

    The rows of a batch lie anywhere in gigabytes, and a miss costs as long as the arithmetic of a
    whole row. A kernel knows its next positions, the processor cannot guess them: without this the
    fused update takes twice its time (18 ms where this made it 9, for 106,496 accesses to 5 M rows
    of 64 floats). It is a hint: it changes nothing and never faults.
    """
    for offset_bytes in range(0, array.shape[1] * 4, LINE_BYTES):
        _fetch_line(array, np.int64(row), offset_bytes)


@inlined
def fetch_item(array: Any, item: Any) -> None:
    """`fetch_row` for ``array[item]``; array: (C,) of any dtype."""
    _fetch_line(array, np.int64(item), 0)
