"""How far a kernel's outputs may lie from its reference's by rounding alone."""

from __future__ import annotations

import torch
from torch import Tensor

# What a float32 of size 1 is rounded by at most, and how far a bfloat16 of that size is from the next.
FLOAT32, BFLOAT16 = 2.0**-24, 2.0**-7


def unsigned(value: object) -> object:
    """A tensor of numbers without their signs; ids, places and all else as they are."""
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


def rounding(terms: int, wanted: Tensor, magnitude: Tensor) -> Tensor:
    """The bound of |found - wanted| for sums of so many products, made and added in float32 in any order.

    wanted: the exact sums, in the type of the output; magnitude: the sums of the terms without their signs, as a reference
    makes them of `unsigned` arguments. Roundings go either way, so that they grow by the root of their number: four times
    that is not met, and a term left out is far more. What is kept in bfloat16 may also fall to the wanted one's neighbour.
    """
    bound = 4 * terms**0.5 * FLOAT32 * magnitude.float()
    return bound + BFLOAT16 * wanted.float().abs() if wanted.dtype == torch.bfloat16 else bound


def attended(q: Tensor, k: Tensor, keys: int, wanted: Tensor, magnitude: Tensor) -> Tensor:
    """The bound of |found - wanted| for outputs [M, H D] of an attention of queries q [M, H, D] over up to so many `keys`,
    rows of k [..., D].

    wanted: as for `rounding`; magnitude: the outputs for values without their signs. A weight exp(score) is off by its share
    of what the score is off, a sum of D products; in bfloat16 it is rounded again before it weighs its value, by Triton's
    interpreter always downwards.
    """
    D = q.shape[-1]
    sizes = k.reshape(-1, D).float().nan_to_num(0).abs()
    score = (q.reshape(-1, D).float().abs() @ sizes.T).max()
    share = 4 * FLOAT32 * (D**0.5 * score + keys**0.5)
    if wanted.dtype == torch.bfloat16:
        share = share + BFLOAT16
    bound = share * magnitude.float()
    return bound + BFLOAT16 * wanted.float().abs() if wanted.dtype == torch.bfloat16 else bound
