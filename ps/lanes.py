"""Arithmetic that numba's own language cannot say: a sum in lanes, a square root without errno.

Threads: no state.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
"""Of a sum over a row: part of each kernel's definition, not of the machine it runs on."""

_ir = cgutils.ir  # llvmlite, in the version that is numba's own choice


@intrinsic
def sum_of_squares(typingctx: Any, values: Any) -> Any:
    """Σ values², float32, in a fixed order.

    values: (P,) float32, contiguous, P a multiple of LANES. Lane j adds the squares at j,
    j + LANES, j + 2 LANES ... one after the other; then the upper half of the lanes is added onto
    the lower until one is left. Zeros behind the values change nothing.
    Written as vectors, since compilers may not turn a sum of floats into lanes, and lanes in an
    array take 4 times as long (3 ns for 64 floats, folding in memory 13 to 20).
    """
    word, number = _ir.IntType(64), _ir.IntType(32)
    vector = _ir.VectorType(_ir.FloatType(), LANES)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(values)(context, builder, args[0])
        total = cgutils.alloca_once_value(builder, vector([0.0] * LANES))
        stop = cgutils.unpack_tuple(builder, view.shape)[0]
        with cgutils.for_range_slice(builder, word(0), stop, word(LANES), word) as (first, _):
            place = builder.bitcast(builder.gep(view.data, [first]), vector.as_pointer())
            chunk = builder.load(place)
            chunk.align = 4
            square = builder.fmul(chunk, chunk)
            builder.store(builder.fadd(builder.load(total), square), total)
        lanes = builder.load(total)
        for half in (8, 4, 2, 1):
            upper = [half + j if j < half else 0 for j in range(LANES)]
            mask = _ir.VectorType(number, LANES)(upper)
            lanes = builder.fadd(lanes, builder.shuffle_vector(lanes, lanes, mask))
        return builder.extract_element(lanes, number(0))

    return types.float32(values), codegen


@intrinsic
def root(typingctx: Any, value: Any) -> Any:
    """√value, float32, as IEEE 754 rounds it; NaN below 0.

    numba's own calls the C library's, which reports numbers below 0 in errno: no loop with it runs
    in lanes.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.sqrt", [args[0].type])
        return builder.call(function, [args[0]])

    return types.float32(types.float32), codegen
