"""A layer of the convolutional drafter (engine/drafters/neural/cnn.py) on a GPU, for one token of each sequence.

    positions  [B] int64 of any stride      the position that each sequence reads, -1: none
    below      [B, T, U] float32            the layer's inputs by position, before the norm; zeros before the start
    weight     [W, 2U, U] bf16 or float32   of W positions, `dilation` apart, the earliest first; outputs are the values,
                                            then the gates; bias [2U] float32
    above      [B, T, U] float32            out, at `positions`: below + value * sigmoid(gate), of RMS-normed inputs

Sequences are tiled by 16, summed as in model/linear_triton.py: a result does not depend on the other sequences of the tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.kernels.core.backend_triton import jit, tl
from foredraft.kernels.drafting.lstm_cell_triton import EPSILON, inverse_rms, recurrent_tiling
from foredraft.kernels.model.linear_triton import WIDTH, matmul_tile


@jit(do_not_specialize=["positions", "B", "T", "dilation", "positions_stride"])
def _convolution_kernel(positions, below, weight, bias, above, B, T, dilation, positions_stride, W: tl.constexpr,
                        U: tl.constexpr, EPSILON: tl.constexpr, N: tl.constexpr, WAYS: tl.constexpr, STEP: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * 16 + tl.arange(0, 16)
    units = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    is_unit = units < U
    at = tl.load(positions + rows * positions_stride, mask=rows < B, other=-1)
    is_read = at >= 0
    value, gate = tl.zeros((16, N), tl.float32), tl.zeros((16, N), tl.float32)
    for tap in tl.static_range(W):
        position = at - (W - 1 - tap) * dilation
        seen = (is_read & (position >= 0)) != 0
        scale = inverse_rms(below, rows * T + position, seen, U, EPSILON)[:, None]
        here = weight + tap * 2 * U * U
        value += matmul_tile(below, here, rows * T + position, seen, units, is_unit, U, N, WAYS, STEP) * scale
        gate += matmul_tile(below, here, rows * T + position, seen, U + units, is_unit, U, N, WAYS, STEP) * scale
    value += tl.load(bias + units, mask=is_unit, other=0.0)[None, :]
    gate += tl.load(bias + U + units, mask=is_unit, other=0.0)[None, :]
    mask = is_read[:, None] & is_unit[None, :]
    where = (rows * T + at)[:, None] * U + units[None, :]
    tl.store(above + where, tl.load(below + where, mask=mask, other=0.0) + value * tl.sigmoid(gate), mask=mask)


def convolution_triton(positions: Tensor, below: Tensor, weight: Tensor, bias: Tensor, dilation: int, above: Tensor) -> None:
    """One launch, without synchronisation."""
    B, T, U = len(positions), below.shape[1], below.shape[2]
    _convolution_kernel[(-(-B // 16), -(-U // WIDTH))](
        positions, below, weight, bias, above, B, T, dilation, positions.stride(0), W=len(weight), U=U, EPSILON=EPSILON,
        N=WIDTH, **recurrent_tiling(weight))


def convolution_reference(positions, below, weight, bias, dilation, above) -> None:
    W, U = len(weight), below.shape[2]
    for b, t in enumerate(positions.tolist()):
        if t < 0:
            continue
        total = bias.double()
        for tap in range(W):
            position = t - (W - 1 - tap) * dilation
            if position >= 0:
                x = below[b, position].double()
                total = total + weight[tap].double() @ (x / (x.square().mean() + EPSILON).sqrt())
        above[b, t] = below[b, t].double() + total[:U] * torch.sigmoid(total[U:])


CONVOLUTION = {"reference": convolution_reference, "triton": convolution_triton}
