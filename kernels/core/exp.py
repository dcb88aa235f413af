"""e^x in float32, in a form that LLVM vectorises; numba's own exp calls the C library for each element.

    x -> float32    x <= 88; below -87 the result is the smallest normal number; NaN gives NaN

x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a minimax polynomial of degree 6 (relative error 3e-9), 2^n by the exponent bits.
The result is within 2 units in the last place.
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.core.backend import intrinsic, njit

# (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2, highest power first
_A, _B, _C, _D, _E = (np.float32(value) for value in (1.3814598e-3, 8.3687169e-3, 4.1668388e-2, 1.6666521e-1, 0.49999993))
_LOG2_E = np.float32(1 / math.log(2))
# ln 2 in two parts; n times the first part is exact
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(math.log(2) - 0.693359375)
# adding and then subtracting it rounds a float32 below 2^22 to an integer
_ROUND = np.float32(1.5 * 2**23)
LOWEST = np.float32(-87.0)
HIGHEST = np.float32(88.0)
_ONE = np.float32(1.0)


def exp_reference(x: float) -> float:
    return math.exp(max(x, float(LOWEST)))


@intrinsic
def _float_of_bits(typingctx, bits):
    from llvmlite import ir
    from numba import types

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@njit()
def exp32(x):
    """e^x for compiled kernels."""
    x = x if x > LOWEST or x != x else LOWEST
    n = (x * _LOG2_E + _ROUND) - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    tail = (((_A * r + _B) * r + _C) * r + _D) * r + _E
    return (tail * r * r + r + _ONE) * _float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))
