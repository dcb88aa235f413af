"""Kernels of the recurrent drafters on a GPU (engine/drafters/neural/lstm.py, copy_module.py): one token of each sequence.

    tokens, positions [B] int64 of any stride   the token that each sequence reads and its position, -1: none
    embedding         [V, C] bf16 or float32    its rows are RMS-normed when they are read
    h                 [B, T, U], c float32      states of a layer by position, h in the type of the weights: read at
                                                positions - 1 (zeros before the start), written at `positions`

  cell: an LSTM cell
    weight_x [4U, C or U], weight_h [4U, U], bias [4U] float32; gates in torch's order i, f, g, o. The input is the token's
    embedding, or `below`, the h of the layer under this one.

  mix: a linear layer over up to three inputs, out = scale * (bias + sum of products)
    h at `positions` (`normed`: RMS-normed) by weight_h [N, U]; others [B, J] by weight_o [N, J]; the embeddings of the last
    E tokens, the latest first, by weight_e [E, N, C]: committed [B, T1] up to lengths [B], then drafted [B, K].
    bias [N] float32. Each may be None. out is [B, N], or [B, T, N] written at `positions`. With gain [B] float32, out gets
    relu of the first N - 1 outputs, and gain the softplus of the last one.

Sequences are tiled by 16, summed as in model/linear_triton.py: a result does not depend on the other sequences of the tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.kernels.core.backend_triton import jit, tl
from foredraft.kernels.model.linear_triton import WIDTH, matmul_tile, tiling

EPSILON = 1e-6


@jit
def inverse_rms(embedding, tokens, is_row, C: tl.constexpr, EPSILON: tl.constexpr):
    """[16]: 1 / RMS of the embeddings of `tokens`."""
    c = tl.arange(0, 64)[None, :]
    squares = tl.zeros((16, 64), tl.float32)
    for start in range(0, C, 64):
        values = tl.load(embedding + tokens[:, None] * C + start + c, mask=is_row[:, None] & (start + c < C), other=0.0)
        values = values.to(tl.float32)
        squares += values * values
    return 1.0 / tl.sqrt(tl.sum(squares, 1) / C + EPSILON)


@jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@jit
def _gate(x, weight_x, h, weight_h, bias, source, is_read, scale, before, has_before, units, is_unit, GATE: tl.constexpr,
          X: tl.constexpr, U: tl.constexpr, N: tl.constexpr, WAYS: tl.constexpr, STEP: tl.constexpr):
    outputs = GATE * U + units
    total = matmul_tile(x, weight_x, source, is_read, outputs, is_unit, X, N, WAYS, STEP) * scale[:, None]
    total += matmul_tile(h, weight_h, before, has_before, outputs, is_unit, U, N, WAYS, STEP)
    return total + tl.load(bias + outputs, mask=is_unit, other=0.0)[None, :]


@jit(do_not_specialize=["tokens", "positions", "B", "T", "tokens_stride", "positions_stride"])
def _cell_kernel(tokens, positions, x, weight_x, weight_h, bias, h, c, B, T, tokens_stride, positions_stride,
                 X: tl.constexpr, U: tl.constexpr, EMBEDS: tl.constexpr, EPSILON: tl.constexpr, N: tl.constexpr,
                 WAYS: tl.constexpr, STEP: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * 16 + tl.arange(0, 16)
    units = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    is_unit = units < U
    at = tl.load(positions + rows * positions_stride, mask=rows < B, other=-1)
    is_read = at >= 0
    here = rows * T + at
    before, has_before = here - 1, at > 0
    if EMBEDS:
        source = tl.load(tokens + rows * tokens_stride, mask=is_read, other=0)
        scale = inverse_rms(x, source, is_read, X, EPSILON)
    else:
        source = here
        scale = tl.full((16,), 1.0, tl.float32)
    i = _gate(x, weight_x, h, weight_h, bias, source, is_read, scale, before, has_before, units, is_unit, 0, X, U, N, WAYS,
              STEP)
    f = _gate(x, weight_x, h, weight_h, bias, source, is_read, scale, before, has_before, units, is_unit, 1, X, U, N, WAYS,
              STEP)
    g = _gate(x, weight_x, h, weight_h, bias, source, is_read, scale, before, has_before, units, is_unit, 2, X, U, N, WAYS,
              STEP)
    o = _gate(x, weight_x, h, weight_h, bias, source, is_read, scale, before, has_before, units, is_unit, 3, X, U, N, WAYS,
              STEP)
    kept = tl.load(c + before[:, None] * U + units[None, :], mask=has_before[:, None] & is_unit[None, :], other=0.0)
    state = tl.sigmoid(f) * kept + tl.sigmoid(i) * _tanh(g)
    mask = is_read[:, None] & is_unit[None, :]
    tl.store(c + here[:, None] * U + units[None, :], state, mask=mask)
    tl.store(h + here[:, None] * U + units[None, :], (tl.sigmoid(o) * _tanh(state)).to(h.dtype.element_ty), mask=mask)


@jit(do_not_specialize=["positions", "B", "T", "T1", "K", "positions_stride"])
def _mix_kernel(positions, h, others, embedding, committed, lengths, drafted, weight_h, weight_o, weight_e, bias, out, gain,
                scale, B, T, T1, K, positions_stride, N_ALL, U: tl.constexpr, J: tl.constexpr, C: tl.constexpr,
                E: tl.constexpr, NORMED: tl.constexpr, GAINS: tl.constexpr, BY_POSITION: tl.constexpr, EPSILON: tl.constexpr,
                N: tl.constexpr, WAYS: tl.constexpr, STEP: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * 16 + tl.arange(0, 16)
    outputs = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    is_output = outputs < N_ALL
    at = tl.load(positions + rows * positions_stride, mask=rows < B, other=-1)
    is_read = at >= 0
    total = tl.zeros((16, N), tl.float32)
    if U > 0:
        part = matmul_tile(h, weight_h, rows * T + at, is_read, outputs, is_output, U, N, WAYS, STEP)
        if NORMED:
            part *= inverse_rms(h, rows * T + at, is_read, U, EPSILON)[:, None]
        total += part
    if J > 0:
        total += matmul_tile(others, weight_o, rows, is_read, outputs, is_output, J, N, WAYS, STEP)
    if E > 0:
        length = tl.load(lengths + rows, mask=is_read, other=0)
        for back in tl.static_range(E):
            position = at - back
            seen = is_read & (position >= 0)
            tokens = tl.load(committed + rows * T1 + position, mask=seen & (position < length), other=0)
            tokens += tl.load(drafted + rows * K + position - length, mask=seen & (position >= length), other=0)
            part = matmul_tile(embedding, weight_e + back * N_ALL * C, tokens, seen, outputs, is_output, C, N, WAYS, STEP)
            total += part * inverse_rms(embedding, tokens, seen, C, EPSILON)[:, None]
    if bias is not None:
        total += tl.load(bias + outputs, mask=is_output, other=0.0)[None, :]
    total *= scale
    inside = (rows < B)[:, None] & is_output[None, :]
    if GAINS:
        last = N_ALL - 1
        raised = tl.maximum(total, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(total)))
        tl.store(gain + rows[:, None] + (outputs - last)[None, :], raised, mask=inside & (outputs == last)[None, :])
        tl.store(out + rows[:, None] * last + outputs[None, :], tl.maximum(total, 0.0).to(out.dtype.element_ty),
                 mask=inside & (outputs < last)[None, :])
    elif BY_POSITION:
        tl.store(out + (rows * T + at)[:, None] * N_ALL + outputs[None, :], total.to(out.dtype.element_ty),
                 mask=is_read[:, None] & is_output[None, :])
    else:
        tl.store(out + rows[:, None] * N_ALL + outputs[None, :], total.to(out.dtype.element_ty), mask=inside)


def cell_triton(tokens: Tensor | None, positions: Tensor, below: Tensor, weight_x: Tensor, weight_h: Tensor, bias: Tensor,
                h: Tensor, c: Tensor) -> None:
    """`below`: the embedding, or without `tokens` the h of the layer under this one. One launch, without synchronisation."""
    B, T, U = len(positions), h.shape[1], h.shape[2]
    _cell_kernel[(-(-B // 16), -(-U // WIDTH))](
        tokens, positions, below, weight_x, weight_h, bias, h, c, B, T, 0 if tokens is None else tokens.stride(0),
        positions.stride(0),
        X=below.shape[-1], U=U, EMBEDS=tokens is not None, EPSILON=EPSILON, N=WIDTH, **recurrent_tiling(weight_h))


def mix_triton(positions: Tensor, h: Tensor | None, others: Tensor | None, embedding: Tensor | None,
               committed: Tensor | None, lengths: Tensor | None, drafted: Tensor | None, weight_h: Tensor | None,
               weight_o: Tensor | None, weight_e: Tensor | None, bias: Tensor | None, scale: float, out: Tensor,
               gain: Tensor | None, normed: bool = False) -> None:
    """One launch, without synchronisation."""
    weight = next(weight for weight in (weight_o, weight_h, weight_e) if weight is not None)
    B, N, by_position = len(positions), weight.shape[-2], out.dim() == 3
    T = next((states.shape[1] for states in (h, out if by_position else None) if states is not None), 0)
    _mix_kernel[(-(-B // 16), -(-N // WIDTH))](
        positions, h, others, embedding, committed, lengths, drafted, weight_h, weight_o, weight_e, bias, out, gain, scale,
        B, T, 0 if committed is None else committed.shape[1], 0 if drafted is None else drafted.shape[1],
        positions.stride(0), N, U=0 if h is None else h.shape[2], J=0 if others is None else others.shape[1],
        C=0 if embedding is None else embedding.shape[1], E=0 if weight_e is None else len(weight_e),
        NORMED=normed, GAINS=gain is not None, BY_POSITION=by_position, EPSILON=EPSILON, N=WIDTH, **recurrent_tiling(weight))


def recurrent_tiling(weight: Tensor) -> dict[str, int]:
    """A program computes several products: fewer stages than in linear_triton.py, and in float32 fewer columns."""
    return tiling(weight) | ({"num_stages": 3} if weight.dtype == torch.bfloat16 else {"STEP": 16})


def _normed(embedding: Tensor, token: int) -> Tensor:
    values = embedding[token].double()
    return values / (values.square().mean() + EPSILON).sqrt()


def cell_reference(tokens, positions, below, weight_x, weight_h, bias, h, c) -> None:
    for b, t in enumerate(positions.tolist()):
        if t < 0:
            continue
        x = below[b, t].double() if tokens is None else _normed(below, int(tokens[b]))
        h_before, c_before = (s[b, t - 1].double() if t else torch.zeros(s.shape[2], dtype=torch.float64) for s in (h, c))
        i, f, g, o = (weight_x.double() @ x + weight_h.double() @ h_before + bias.double()).chunk(4)
        c[b, t] = f.sigmoid() * c_before + i.sigmoid() * g.tanh()
        h[b, t] = o.sigmoid() * c[b, t].double().tanh()


def mix_reference(positions, h, others, embedding, committed, lengths, drafted, weight_h, weight_o, weight_e, bias, scale,
                  out, gain, normed=False) -> None:
    for b, t in enumerate(positions.tolist()):
        if t < 0:
            continue
        total = 0.0 if bias is None else bias.double()
        if weight_h is not None:
            total = total + weight_h.double() @ (_normed(h[b], t) if normed else h[b, t].double())
        if weight_o is not None:
            total = total + weight_o.double() @ others[b].double()
        for back in range(0 if weight_e is None else min(len(weight_e), t + 1)):
            length = int(lengths[b])
            token = committed[b, t - back] if t - back < length else drafted[b, t - back - length]
            total = total + weight_e[back].double() @ _normed(embedding, int(token))
        total = total * scale
        if gain is None:
            (out[b, t] if out.dim() == 3 else out[b])[:] = total
        else:
            out[b], gain[b] = total[:-1].relu(), torch.nn.functional.softplus(total[-1])


CELL = {"reference": cell_reference, "triton": cell_triton}
MIX = {"reference": mix_reference, "triton": mix_triton}
