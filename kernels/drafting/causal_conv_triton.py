"""One layer of the convolutional drafter's stack on a GPU (engine/drafters/neural/cnn.py): one id of each row.

    places     [B] int64 of any stride      the position that each row reads; -1: nothing
    below      [B, T, U] float32            the layer's inputs by position, not normed; zeros before the start
    weight     [W, 2U, U]                   of the W places that it sees, `dilation` apart, the earliest first; the value's
                                            half, then the gate's; bf16 or float32; bias [2U] float32
    above      [B, T, U] float32            out, at `places`: below + value * sigmoid(gate), of inputs normed to a root mean
                                            square of 1

Rows are tiled by 16, as in fused_linear.py: a row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.kernels.core.backend import jit, tl
from foredraft.kernels.drafting.lstm_cell_triton import EPSILON, normal, recurrent_tiling
from foredraft.kernels.model.linear_triton import WIDTH, weigh


@jit
def _convolution_kernel(places, below, weight, bias, above, B, T, dilation, places_stride, W: tl.constexpr, U: tl.constexpr,
                        EPSILON: tl.constexpr, N: tl.constexpr, WAYS: tl.constexpr, STEP: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * 16 + tl.arange(0, 16)
    units = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    is_unit = units < U
    at = tl.load(places + rows * places_stride, mask=rows < B, other=-1)
    is_read = at >= 0
    value, gate = tl.zeros((16, N), tl.float32), tl.zeros((16, N), tl.float32)
    for tap in tl.static_range(W):
        place = at - (W - 1 - tap) * dilation
        seen = (is_read & (place >= 0)) != 0
        scale = normal(below, rows * T + place, seen, U, EPSILON)[:, None]
        here = weight + tap * 2 * U * U
        value += weigh(below, here, rows * T + place, seen, units, is_unit, U, N, WAYS, STEP) * scale
        gate += weigh(below, here, rows * T + place, seen, U + units, is_unit, U, N, WAYS, STEP) * scale
    value += tl.load(bias + units, mask=is_unit, other=0.0)[None, :]
    gate += tl.load(bias + U + units, mask=is_unit, other=0.0)[None, :]
    mask = is_read[:, None] & is_unit[None, :]
    where = (rows * T + at)[:, None] * U + units[None, :]
    tl.store(above + where, tl.load(below + where, mask=mask, other=0.0) + value * tl.sigmoid(gate), mask=mask)


def convolution_triton(places: Tensor, below: Tensor, weight: Tensor, bias: Tensor, dilation: int, above: Tensor) -> None:
    """One launch, no wait."""
    B, T, U = len(places), below.shape[1], below.shape[2]
    _convolution_kernel[(-(-B // 16), -(-U // WIDTH))](
        places, below, weight, bias, above, B, T, dilation, places.stride(0), W=len(weight), U=U, EPSILON=EPSILON, N=WIDTH,
        **recurrent_tiling(weight))


def convolution_reference(places, below, weight, bias, dilation, above) -> None:
    W, U = len(weight), below.shape[2]
    for b, t in enumerate(places.tolist()):
        if t < 0:
            continue
        total = bias.double()
        for tap in range(W):
            place = t - (W - 1 - tap) * dilation
            if place >= 0:
                x = below[b, place].double()
                total = total + weight[tap].double() @ (x / (x.square().mean() + EPSILON).sqrt())
        above[b, t] = below[b, t].double() + total[:U] * torch.sigmoid(total[U:])


CONVOLUTION = {"reference": convolution_reference, "triton": convolution_triton}
