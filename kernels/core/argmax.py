"""The maximum and argmax of float32 values, in a form that LLVM vectorises.

    values  [n] float32, n >= 1, without NaN
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
    """The larger of two float32, for compiled kernels. Unlike max() it need not handle NaN, so loops over it vectorise."""
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
    # by index: numba does not vectorise iteration over an array
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
