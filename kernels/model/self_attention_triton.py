"""Cached self-attention of decoder query positions on a GPU, with T5's relative bias.

    q          [M, H, D]           queries of M = B R query positions, not scaled (T5)
    k, v       [B, H, T, D]        cache; query position r of sequence b lies in slot positions[b, 0] + r, and position 1 in
                                   slot 0 where only position 0 is not read
    positions  [B, R] int64        absolute; -1: not read, its output is 0
    visible    [B, R, R] int8      1 where query position r may attend to position j: itself and its ancestors
    bias       [H, T] float32      by distance (query position - key position >= 0)
    out        [M, H D]            in the type of q

One program for each sequence, head and 16 query positions, with an online softmax in float32 over blocks of 64 slots from
slot 0 on. A block that a query does not attend to leaves its output unchanged, bit for bit, so a result depends on its own
sequence alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foredraft.kernels.core.backend_triton import jit, power_of_2, tl
from foredraft.kernels.core.pdl_triton import pdl_wait

BLOCK = 64


@jit(do_not_specialize=["positions", "T", "R"])
def _self_attention_kernel(q, k, v, positions, visible, bias, out, T, R, H: tl.constexpr, D: tl.constexpr,
                           D_UP: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr = False):
    pdl_wait(PDL)
    b, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    r = tl.program_id(2) * 16 + tl.arange(0, 16)
    d = tl.arange(0, D_UP)
    is_d = d < D
    base = tl.load(positions + b * R)
    at = tl.load(positions + b * R + r, mask=r < R, other=-1)
    rows = (b * R + r) * H + head
    mine = tl.load(q + rows[:, None] * D + d[None, :], mask=(r < R)[:, None] & is_d[None, :], other=0.0)
    top = tl.full((16,), float("-inf"), tl.float32)
    total = tl.zeros((16,), tl.float32)
    sums = tl.zeros((16, D_UP), tl.float32)
    cache = (b * H + head) * T
    end = tl.where(tl.max(at, 0) >= 0, base + R, 0)
    for start in range(0, end, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        row = slot - base
        is_row = (row >= 0) & (row < R)
        where = (cache + slot)[:, None] * D + d[None, :]
        keys = tl.load(k + where, mask=(slot < end)[:, None] & is_d[None, :], other=0.0)
        values = tl.load(v + where, mask=(slot < end)[:, None] & is_d[None, :], other=0.0)
        key_position = tl.load(positions + b * R + row, mask=is_row, other=-1)
        seen = tl.load(visible + (b * R + r)[:, None] * R + row[None, :], mask=(r < R)[:, None] & is_row[None, :], other=0)
        distance = at[:, None] - tl.where(is_row, key_position, slot)[None, :]
        sees = (at >= 0)[:, None] & ((slot < base)[None, :] | (seen != 0)) & (distance >= 0)
        scores = tl.dot(mine, tl.trans(keys), input_precision="ieee")
        scores += tl.load(bias + head * T + distance, mask=sees, other=0.0)
        scores = tl.where(sees, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        kept = tl.exp(top - level)
        weights = tl.exp(scores - level[:, None])
        total = total * kept + tl.sum(weights, 1)
        sums = sums * kept[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        top = higher
    sums = sums / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + rows[:, None] * D + d[None, :], sums.to(out.dtype.element_ty), mask=(r < R)[:, None] & is_d[None, :])


def fused_self_attention_triton(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, visible: Tensor, bias: Tensor,
                                out: Tensor, **launch) -> None:
    B, H, T, D = k.shape
    R = positions.shape[1]
    _self_attention_kernel[(B, H, -(-R // 16))](q, k, v, positions, visible, bias, out, T, R, H=H, D=D,
                                                D_UP=max(16, power_of_2(D)), BLOCK=BLOCK, num_warps=4, num_stages=2,
                                                **launch)


def fused_self_attention_reference(q, k, v, positions, visible, bias, out) -> None:
    B, H, _, D = k.shape
    R = positions.shape[1]
    out.zero_()
    for b in range(B):
        base = int(positions[b, 0])
        for r in range(R):
            if positions[b, r] < 0:
                continue
            seen = [(slot, slot) for slot in range(base)]
            seen += [(base + j, int(positions[b, j])) for j in range(R) if visible[b, r, j] and base + j >= 0]
            for h in range(H):
                mine = q[b * R + r, h].double()
                scores = [float(mine @ k[b, h, slot].double()) + float(bias[h, positions[b, r] - at]) for slot, at in seen]
                weights = [math.exp(score - max(scores)) for score in scores]
                mixed = sum(w / sum(weights) * v[b, h, slot].double() for w, (slot, _) in zip(weights, seen, strict=True))
                out[b * R + r, h * D : (h + 1) * D] = mixed.to(torch.float32)


FUSED_SELF_ATTENTION = {"reference": fused_self_attention_reference, "triton": fused_self_attention_triton}
