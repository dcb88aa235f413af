"""Bounds on the distance between a kernel's outputs and its reference's by rounding alone."""

from __future__ import annotations

import torch
from torch import Tensor

# largest rounding of a float32 of size 1, and the distance of a bfloat16 of size 1 to the next
FLOAT32, BFLOAT16 = 2.0**-24, 2.0**-7


def unsigned(value: object) -> object:
    """Absolute values of a floating-point tensor; other values unchanged."""
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


def rounding(terms: int, wanted: Tensor, magnitude: Tensor) -> Tensor:
    """Bound of |found - wanted| for sums of `terms` products in float32, in any order.

    wanted: the sums in the type of the output. magnitude: the sums of absolute terms, from a reference of `unsigned`
    arguments. Roundings have random signs, so their sum grows with the root of their number; four times that is never
    reached, and a missing term is far larger.
    """
    return _rounded(4 * terms**0.5 * FLOAT32 * magnitude.float(), wanted)


def attended(q: Tensor, k: Tensor, keys: int, wanted: Tensor, magnitude: Tensor) -> Tensor:
    """Bound of |found - wanted| for attention outputs [M, H D] of queries q [M, H, D] over up to `keys` keys k [..., D].

    wanted: as in `rounding`. magnitude: the outputs for absolute values. The relative error of a weight exp(score) is the
    error of the score, a sum of D products. In bfloat16 a weight is rounded again before it multiplies its value; Triton's
    interpreter always rounds down.
    """
    D = q.shape[-1]
    sizes = k.reshape(-1, D).float().nan_to_num(0).abs()
    score = (q.reshape(-1, D).float().abs() @ sizes.T).max()
    share = 4 * FLOAT32 * (D**0.5 * score + keys**0.5)
    if wanted.dtype == torch.bfloat16:
        share = share + BFLOAT16
    return _rounded(share * magnitude.float(), wanted)


def _rounded(bound: Tensor, wanted: Tensor) -> Tensor:
    """The bound of the output: a bfloat16 may also be the neighbour of the wanted one."""
    return bound + BFLOAT16 * wanted.float().abs() if wanted.dtype == torch.bfloat16 else bound
