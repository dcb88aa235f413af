"""The recurrent drafter's own launches on a GPU (engine/drafters/neural/lstm.py, engine/drafters/neural/copy_module.py): one id of each row.

    ids, places     [B] int64 of any stride     what each row reads, and at which position; -1: nothing
    embedding       [V, C]                      bf16 or float32; an id's is normed to a root mean square of 1
    h               [B, T, U], c float32        a layer's states by position, h in the type of the weights; read at
                                                places - 1, zeros before the start, and written at `places`

    cell    weight_x [4U, C or U], weight_h [4U, U], bias [4U] float32, gates in torch's order i, f, g, o; x is the id's
            embedding, or `below`, the h of the layer under it
    mix     inputs that lie side by side: h at `places`, others [B, J], the embeddings of the last E ids, the latest first
            (tokens [B, T1] up to lengths [B], then drafted [B, K]). weight_h [N, U], weight_o [N, J], weight_e [E, N, C],
            bias [N] float32; each or None. out [B, N] = scale times their sum; or, with gain [B] float32, the first N - 1
            outputs made relu, and of the last one softplus, into `gain`. `normed`: h is normed to a root mean square of 1.
            An out [B, T, N] is written at `places`

Rows are tiled by 16, as in fused_linear.py: a row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.kernels.core.backend import jit, tl
from foredraft.kernels.model.linear_triton import WIDTH, tiling, weigh

EPSILON = 1e-6


@jit
def normal(embedding, ids, is_row, C: tl.constexpr, EPSILON: tl.constexpr):
    """[16]: one over the root mean square of each id's embedding."""
    c = tl.arange(0, 64)[None, :]
    squares = tl.zeros((16, 64), tl.float32)
    for start in range(0, C, 64):
        values = tl.load(embedding + ids[:, None] * C + start + c, mask=is_row[:, None] & (start + c < C), other=0.0)
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
    total = weigh(x, weight_x, source, is_read, outputs, is_unit, X, N, WAYS, STEP) * scale[:, None]
    total += weigh(h, weight_h, before, has_before, outputs, is_unit, U, N, WAYS, STEP)
    return total + tl.load(bias + outputs, mask=is_unit, other=0.0)[None, :]


@jit
def _cell_kernel(ids, places, x, weight_x, weight_h, bias, h, c, B, T, ids_stride, places_stride, X: tl.constexpr,
                 U: tl.constexpr, EMBEDS: tl.constexpr, EPSILON: tl.constexpr, N: tl.constexpr, WAYS: tl.constexpr,
                 STEP: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * 16 + tl.arange(0, 16)
    units = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    is_unit = units < U
    at = tl.load(places + rows * places_stride, mask=rows < B, other=-1)
    is_read = at >= 0
    here = rows * T + at
    before, has_before = here - 1, at > 0
    if EMBEDS:
        source = tl.load(ids + rows * ids_stride, mask=is_read, other=0)
        scale = normal(x, source, is_read, X, EPSILON)
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


@jit
def _mix_kernel(places, h, others, embedding, tokens, lengths, drafted, weight_h, weight_o, weight_e, bias, out, gain, scale,
                B, T, T1, K, places_stride, N_ALL, U: tl.constexpr, J: tl.constexpr, C: tl.constexpr, E: tl.constexpr,
                NORMED: tl.constexpr, GAINS: tl.constexpr, BY_PLACE: tl.constexpr, EPSILON: tl.constexpr, N: tl.constexpr,
                WAYS: tl.constexpr, STEP: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * 16 + tl.arange(0, 16)
    outputs = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    is_output = outputs < N_ALL
    at = tl.load(places + rows * places_stride, mask=rows < B, other=-1)
    is_read = at >= 0
    total = tl.zeros((16, N), tl.float32)
    if U > 0:
        part = weigh(h, weight_h, rows * T + at, is_read, outputs, is_output, U, N, WAYS, STEP)
        if NORMED:
            part *= normal(h, rows * T + at, is_read, U, EPSILON)[:, None]
        total += part
    if J > 0:
        total += weigh(others, weight_o, rows, is_read, outputs, is_output, J, N, WAYS, STEP)
    if E > 0:
        length = tl.load(lengths + rows, mask=is_read, other=0)
        for back in tl.static_range(E):
            place = at - back
            seen = is_read & (place >= 0)
            ids = tl.load(tokens + rows * T1 + place, mask=seen & (place < length), other=0)
            ids += tl.load(drafted + rows * K + place - length, mask=seen & (place >= length), other=0)
            part = weigh(embedding, weight_e + back * N_ALL * C, ids, seen, outputs, is_output, C, N, WAYS, STEP)
            total += part * normal(embedding, ids, seen, C, EPSILON)[:, None]
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
    elif BY_PLACE:
        tl.store(out + (rows * T + at)[:, None] * N_ALL + outputs[None, :], total.to(out.dtype.element_ty),
                 mask=is_read[:, None] & is_output[None, :])
    else:
        tl.store(out + rows[:, None] * N_ALL + outputs[None, :], total.to(out.dtype.element_ty), mask=inside)


def cell_triton(ids: Tensor | None, places: Tensor, below: Tensor, weight_x: Tensor, weight_h: Tensor, bias: Tensor,
                h: Tensor, c: Tensor) -> None:
    """`below`: the embedding, or where ids are None the h of the layer under this one. One launch, no wait."""
    B, T, U = len(places), h.shape[1], h.shape[2]
    _cell_kernel[(-(-B // 16), -(-U // WIDTH))](
        ids, places, below, weight_x, weight_h, bias, h, c, B, T, 0 if ids is None else ids.stride(0), places.stride(0),
        X=below.shape[-1], U=U, EMBEDS=ids is not None, EPSILON=EPSILON, N=WIDTH, **recurrent_tiling(weight_h))


def mix_triton(places: Tensor, h: Tensor | None, others: Tensor | None, embedding: Tensor | None, tokens: Tensor | None,
               lengths: Tensor | None, drafted: Tensor | None, weight_h: Tensor | None, weight_o: Tensor | None,
               weight_e: Tensor | None, bias: Tensor | None, scale: float, out: Tensor, gain: Tensor | None,
               normed: bool = False) -> None:
    """One launch, no wait."""
    weight = next(weight for weight in (weight_o, weight_h, weight_e) if weight is not None)
    B, N, by_place = len(places), weight.shape[-2], out.dim() == 3
    T = next((states.shape[1] for states in (h, out if by_place else None) if states is not None), 0)
    _mix_kernel[(-(-B // 16), -(-N // WIDTH))](
        places, h, others, embedding, tokens, lengths, drafted, weight_h, weight_o, weight_e, bias, out, gain, scale, B,
        T, 0 if tokens is None else tokens.shape[1], 0 if drafted is None else drafted.shape[1],
        places.stride(0), N, U=0 if h is None else h.shape[2], J=0 if others is None else others.shape[1],
        C=0 if embedding is None else embedding.shape[1], E=0 if weight_e is None else len(weight_e),
        NORMED=normed, GAINS=gain is not None, BY_PLACE=by_place, EPSILON=EPSILON, N=WIDTH, **recurrent_tiling(weight))


def recurrent_tiling(weight: Tensor) -> dict[str, int]:
    """Several products in one program: they load less far ahead than fused_linear.py's, and in float32 fewer columns."""
    return tiling(weight) | ({"num_stages": 3} if weight.dtype == torch.bfloat16 else {"STEP": 16})


def _normed(embedding: Tensor, token: int) -> Tensor:
    values = embedding[token].double()
    return values / (values.square().mean() + EPSILON).sqrt()


def cell_reference(ids, places, below, weight_x, weight_h, bias, h, c) -> None:
    for b, t in enumerate(places.tolist()):
        if t < 0:
            continue
        x = below[b, t].double() if ids is None else _normed(below, int(ids[b]))
        h_before, c_before = (s[b, t - 1].double() if t else torch.zeros(s.shape[2], dtype=torch.float64) for s in (h, c))
        i, f, g, o = (weight_x.double() @ x + weight_h.double() @ h_before + bias.double()).chunk(4)
        c[b, t] = f.sigmoid() * c_before + i.sigmoid() * g.tanh()
        h[b, t] = o.sigmoid() * c[b, t].double().tanh()


def mix_reference(places, h, others, embedding, tokens, lengths, drafted, weight_h, weight_o, weight_e, bias, scale, out,
                  gain, normed=False) -> None:
    for b, t in enumerate(places.tolist()):
        if t < 0:
            continue
        total = 0.0 if bias is None else bias.double()
        if weight_h is not None:
            total = total + weight_h.double() @ (_normed(h[b], t) if normed else h[b, t].double())
        if weight_o is not None:
            total = total + weight_o.double() @ others[b].double()
        for back in range(0 if weight_e is None else min(len(weight_e), t + 1)):
            length = int(lengths[b])
            token = tokens[b, t - back] if t - back < length else drafted[b, t - back - length]
            total = total + weight_e[back].double() @ _normed(embedding, int(token))
        total = total * scale
        if gain is None:
            (out[b, t] if out.dim() == 3 else out[b])[:] = total
        else:
            out[b], gain[b] = total[:-1].relu(), torch.nn.functional.softplus(total[-1])


CELL = {"reference": cell_reference, "triton": cell_triton}
MIX = {"reference": mix_reference, "triton": mix_triton}
