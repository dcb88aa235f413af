"""The largest of many float32, in a form that LLVM vectorises: a comparison that minds NaN goes one by one.

    values  [n] float32, n >= 1, no NaN among them
    largest -> float32;  argmax -> int, the lowest index on ties
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import intrinsic, njit


def largest_reference(values: np.ndarray) -> float:
    return max(values.tolist())


def argmax_reference(values: np.ndarray) -> int:
    return values.tolist().index(largest_reference(values))


@intrinsic
def larger(typingctx, a, b):
    """The larger of two float32, for use inside other kernels."""
    from llvmlite import ir
    from numba import types
    from numba.core.cgutils import get_or_insert_function

    def codegen(context, builder, signature, args):
        f32 = ir.FloatType()
        function = get_or_insert_function(builder.module, ir.FunctionType(f32, [f32, f32]), "llvm.maxnum.f32")
        return builder.call(function, args, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), codegen


@njit()
def largest_loop(values):
    # by index: numba's iteration over an array is not vectorised
    top = values[0]
    for i in range(values.shape[0]):
        top = larger(top, values[i])
    return top


@njit()
def argmax_loop(values):
    top = largest_loop(values)
    for i in range(values.shape[0]):
        if values[i] == top:
            return i
    return 0
