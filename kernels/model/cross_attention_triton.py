"""Cross-attention of decoder query positions on a GPU, over pages of 64 source positions.

    q                 [M, H, D]             queries of M = B R query positions, not scaled (T5)
    pages_k, pages_v  [P, H, 64, D]         page p of sequence b is pages[table[b, p]]
    table             [B, pages] int64      of any stride over B; pages: page_bucket of the longest source, or more
    sources           [B] int64             source lengths
    out               [M, H D]              in the type of q; without a source it is left as it is
    work              float32               buffer of B H pages R (D + 2) or more: partial results of the pages
    arrived           [B H] or more int32   buffer: zeros, and zeros again afterwards
    scores_out        None, or SourceScores, out, of head 0, for copy attention: scores [M, 64 pages] of any stride over M,
                      top, total [M] float32; the attention weight of a position is exp(score - top) / total

One program a page reads the page's keys and values once for all queries of a sequence. The last program of a sequence adds
the partial results in page order, eight at a time; the order depends on the source's length alone, not on `pages`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from foredraft.kernels.core.backend_triton import jit, power_of_2, tl
from foredraft.kernels.core.pdl_triton import pdl_wait

PAGE = 64
TOGETHER = 8


def page_bucket(source: int) -> int:
    """Pages to launch for, if the longest source has `source` >= 1 tokens: a power of two, for few variants."""
    return power_of_2(-(-source // PAGE))


class SourceScores(NamedTuple):
    scores: Tensor
    top: Tensor
    total: Tensor


@jit(do_not_specialize=["table_stride", "scores_stride", "pages", "R"])
def _cross_attention_kernel(q, pages_k, pages_v, table, sources, out, work, arrived, source_scores, source_top, source_total,
                            table_stride, scores_stride, pages, R, H: tl.constexpr, D: tl.constexpr, D_UP: tl.constexpr,
                            TOGETHER: tl.constexpr, SOURCE_SCORES: tl.constexpr, PDL: tl.constexpr = False):
    pdl_wait(PDL)
    page, head, b = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.load(sources + b)
    if page * 64 < length:
        d = tl.arange(0, D_UP)
        is_d = d < D
        sixteen = tl.arange(0, 16)
        inside = page * 64 + tl.arange(0, 64) < length
        number = tl.load(table + b * table_stride + page)
        where = ((number * H + head) * 64 + tl.arange(0, 64))[:, None] * D + d[None, :]
        keys = tl.load(pages_k + where, mask=inside[:, None] & is_d[None, :], other=0.0)
        values = tl.load(pages_v + where, mask=inside[:, None] & is_d[None, :], other=0.0)
        # the part of `work` of this sequence and head: [pages, R, D] sums, [pages, R] tops, [pages, R] totals
        share = work + (b * H + head) * pages * R * (D + 2)
        tops = share + pages * R * D
        totals = tops + pages * R
        for tile in range((R + 15) // 16):
            r = tile * 16 + sixteen
            is_row = r < R
            mine = tl.load(q + ((b * R + r) * H + head)[:, None] * D + d[None, :], mask=is_row[:, None] & is_d[None, :],
                           other=0.0)
            scores = tl.dot(mine, tl.trans(keys), input_precision="ieee")
            scores = tl.where(inside[None, :], scores, float("-inf"))
            if SOURCE_SCORES:
                if head == 0:
                    at = page * 64 + tl.arange(0, 64)
                    tl.store(source_scores + (b * R + r)[:, None] * scores_stride + at[None, :], scores,
                             mask=is_row[:, None])
            top = tl.max(scores, 1)
            weights = tl.exp(scores - top[:, None])
            sums = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
            at_part = page * R + r
            tl.store(share + at_part[:, None] * D + d[None, :], sums, mask=is_row[:, None] & is_d[None, :])
            tl.store(tops + at_part, top, mask=is_row)
            tl.store(totals + at_part, tl.sum(weights, 1), mask=is_row)
        # all threads have stored before the program arrives
        tl.debug_barrier()
        used = (length + 63) // 64
        if tl.atomic_add(arrived + b * H + head, 1, sem="acq_rel") == used - 1:
            tl.debug_barrier()
            for tile in range((R + 15) // 16):
                r = tile * 16 + sixteen
                is_row = r < R
                top = tl.full((16,), float("-inf"), tl.float32)
                total = tl.zeros((16,), tl.float32)
                sums = tl.zeros((16, D_UP), tl.float32)
                for first in range(0, used, TOGETHER):
                    part = first + tl.arange(0, TOGETHER)
                    at_part = part[:, None] * R + r[None, :]
                    is_part = (part < used)[:, None] & is_row[None, :]
                    part_tops = tl.load(tops + at_part, mask=is_part, other=float("-inf"), cache_modifier=".cg")
                    part_totals = tl.load(totals + at_part, mask=is_part, other=0.0, cache_modifier=".cg")
                    parts = tl.load(share + at_part[:, :, None] * D + d[None, None, :],
                                    mask=is_part[:, :, None] & is_d[None, None, :], other=0.0, cache_modifier=".cg")
                    higher = tl.maximum(top, tl.max(part_tops, 0))
                    level = tl.where(higher == float("-inf"), 0.0, higher)
                    weights = tl.exp(part_tops - level[None, :])
                    kept = tl.exp(top - level)
                    total = total * kept + tl.sum(weights * part_totals, 0)
                    sums = sums * kept[:, None] + tl.sum(weights[:, :, None] * parts, 0)
                    top = higher
                if SOURCE_SCORES:
                    if head == 0:
                        tl.store(source_top + b * R + r, top, mask=is_row)
                        tl.store(source_total + b * R + r, total, mask=is_row)
                sums = sums / tl.where(total > 0, total, 1.0)[:, None]
                tl.store(out + ((b * R + r) * H + head)[:, None] * D + d[None, :], sums.to(out.dtype.element_ty),
                         mask=is_row[:, None] & is_d[None, :])
            tl.store(arrived + b * H + head, 0)


def work_size(B: int, R: int, heads: int, pages: int, head_size: int) -> int:
    """Floats of `work` for B sequences of R query positions."""
    return B * heads * pages * R * (head_size + 2)


def fused_cross_attention_triton(q: Tensor, pages_k: Tensor, pages_v: Tensor, table: Tensor, sources: Tensor, out: Tensor,
                                 work: Tensor, arrived: Tensor, scores_out: SourceScores | None = None, **launch) -> None:
    B, pages = table.shape
    M, H, D = q.shape
    _cross_attention_kernel[(pages, H, B)](q, pages_k, pages_v, table, sources, out, work, arrived,
                                           *(scores_out or (None, None, None)), table.stride(0),
                                           0 if scores_out is None else scores_out.scores.stride(0), pages, M // B, H=H, D=D,
                                           D_UP=max(16, power_of_2(D)), TOGETHER=TOGETHER,
                                           SOURCE_SCORES=scores_out is not None,
                                           # a float32 page takes the registers of twice as many threads
                                           num_warps=4 if pages_k.dtype == torch.bfloat16 else 8, num_stages=2, **launch)


def fused_cross_attention_reference(q, pages_k, pages_v, table, sources, out, work=None, arrived=None,
                                    scores_out=None) -> None:
    B = table.shape[0]
    M, H, D = q.shape
    R = M // B
    for m in range(M):
        b = m // R
        S = int(sources[b])
        for h in range(H):
            keys = torch.cat([pages_k[page, h] for page in table[b].tolist()])[:S].double()
            values = torch.cat([pages_v[page, h] for page in table[b].tolist()])[:S].double()
            scores = [float(q[m, h].double() @ key) for key in keys]
            weights = [math.exp(score - max(scores)) for score in scores]
            if scores_out is not None and h == 0 and S:
                scores_out.scores[m, :S] = torch.tensor(scores)
                scores_out.top[m], scores_out.total[m] = max(scores), sum(weights)
            mixed = sum(w / sum(weights) * value for w, value in zip(weights, values, strict=True))
            if S:
                out[m, h * D : (h + 1) * D] = mixed.to(torch.float32)


FUSED_CROSS_ATTENTION = {"reference": fused_cross_attention_reference, "triton": fused_cross_attention_triton}
