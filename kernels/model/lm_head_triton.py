"""The language-model head on a GPU.

    y        [M, C]             the decoder's output, scaled, in the type of the weight (final_norm of embed_triton.py)
    weight   [V, C]             bf16 or float32
    logits   [M, V] float32     out: y @ weight.T; or, without storing the logits,
    chosen   [M] int64          out: their argmax, the lowest token on ties; a token too if logits are NaN
    work     float32, work_tokens int32 buffers of M ceil(V/32) or more: the programs' maxima and their tokens
    arrived  [ceil(M/16)] or more int32    buffer: zeros, and zeros again afterwards

A program computes 32 logits of 16, 32 or 64 rows as linear_triton.py does. The last one to arrive takes the largest of the
maxima.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.kernels.core.backend_triton import jit, tl
from foredraft.kernels.core.pdl_triton import pdl_wait
from foredraft.kernels.model.linear_triton import HEIGHT, grid_of, matmul_tile, tiling, tiling_of

WIDTH = 32
TOGETHER = 128


@jit(do_not_specialize=["M"])
def _logits_kernel(y, weight, logits, M, V: tl.constexpr, C: tl.constexpr, HEIGHT: tl.constexpr, N: tl.constexpr,
                   WAYS: tl.constexpr, STEP: tl.constexpr, PDL: tl.constexpr = False):
    pdl_wait(PDL)
    rows = tl.program_id(0).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    token = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    scores = matmul_tile(y, weight, rows, rows < M, token, token < V, C, N, WAYS, STEP)
    tl.store(logits + rows[:, None] * V + token[None, :], scores, mask=(rows < M)[:, None] & (token < V)[None, :])


@jit
def largest_part(work, work_tokens, rows, is_row, parts, V: tl.constexpr, TOGETHER: tl.constexpr):
    """The token of the largest of each row's maxima, [rows] int32, the lowest on ties; V - 1 if all are NaN."""
    top = tl.full((rows.shape[0],), float("-inf"), tl.float32)
    top_token = tl.full((rows.shape[0],), V - 1, tl.int32)
    for first in range(0, parts, TOGETHER):
        part = first + tl.arange(0, TOGETHER)
        mask = is_row[:, None] & (part < parts)[None, :]
        at = rows[:, None] * parts + part[None, :]
        values = tl.load(work + at, mask=mask, other=float("-inf"), cache_modifier=".cg")
        token = tl.load(work_tokens + at, mask=mask, other=V - 1, cache_modifier=".cg")
        best = tl.max(values, 1)
        best_token = tl.min(tl.where(values == best[:, None], token, V - 1), 1)
        top_token = tl.where(best > top, best_token, tl.where(best == top, tl.minimum(best_token, top_token), top_token))
        top = tl.maximum(top, best)
    return top_token


@jit(do_not_specialize=["M"])
def _choose_kernel(y, weight, chosen, work, work_tokens, arrived, M, V: tl.constexpr, C: tl.constexpr,
                   HEIGHT: tl.constexpr, N: tl.constexpr, WAYS: tl.constexpr, STEP: tl.constexpr, TOGETHER: tl.constexpr,
                   PDL: tl.constexpr = False):
    pdl_wait(PDL)
    rows = tl.program_id(0).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    is_row = rows < M
    token = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    parts: tl.constexpr = (V + N - 1) // N
    scores = matmul_tile(y, weight, rows, is_row, token, token < V, C, N, WAYS, STEP)
    scores = tl.where((token < V)[None, :], scores, float("-inf"))
    best = tl.max(scores, 1)
    best_token = tl.min(tl.where(scores == best[:, None], token.to(tl.int32)[None, :], V - 1), 1)
    tl.store(work + rows * parts + tl.program_id(1), best, mask=is_row)
    tl.store(work_tokens + rows * parts + tl.program_id(1), best_token, mask=is_row)
    # all threads have stored before the program arrives
    tl.debug_barrier()
    if tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel") == parts - 1:
        tl.debug_barrier()
        tl.store(chosen + rows, largest_part(work, work_tokens, rows, is_row, parts, V, TOGETHER).to(tl.int64), mask=is_row)
        tl.store(arrived + tl.program_id(0), 0)


def fused_logits_triton(y: Tensor, weight: Tensor, logits: Tensor, **launch) -> None:
    M, V = logits.shape
    options = tiling_of(weight, M) | head_tiling(weight) | {"N": WIDTH}
    _logits_kernel[grid_of(M, V, options)](y, weight, logits, M, V=V, C=weight.shape[1], **options, **launch)


def fused_choose_triton(y: Tensor, weight: Tensor, chosen: Tensor, work: Tensor, work_tokens: Tensor, arrived: Tensor,
                        **launch) -> None:
    (M,), (V, C) = chosen.shape, weight.shape
    options = tiling_of(weight, M) | head_tiling(weight) | {"N": WIDTH}
    _choose_kernel[grid_of(M, V, options)](y, weight, chosen, work, work_tokens, arrived, M, V=V, C=C,
                                           TOGETHER=TOGETHER * HEIGHT // options["HEIGHT"], **options, **launch)


def head_tiling(weight: Tensor) -> dict[str, int]:
    return tiling(weight) | {"num_stages": 3 if weight.dtype == torch.bfloat16 else 2}


def fused_logits_reference(y, weight, logits) -> None:
    logits[:] = y.double() @ weight.double().T


def fused_choose_reference(y, weight, chosen, work=None, work_tokens=None, arrived=None) -> None:
    logits = torch.empty(y.shape[0], weight.shape[0])
    fused_logits_reference(y, weight, logits)
    for m, row in enumerate(logits.tolist()):
        chosen[m] = row.index(max(row))


FUSED_LOGITS = {"reference": fused_logits_reference, "triton": fused_logits_triton}
FUSED_CHOOSE = {"reference": fused_choose_reference, "triton": fused_choose_triton}
