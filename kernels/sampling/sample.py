"""Draw one drafted token a row, and report the very distribution it was drawn from.

    logits                     [B, V] float32    a drafter's raw logits
    temperature, top_k, top_p  [B]               distribution.py; temperature 0 takes the argmax (a point mass)
    seeds, starts              [B] int64         the request's seed, its length at the round's start
    offset                     int               place in the draft
    tokens                     [B] int64         out
    processed                  [B, V] float32    out: log weights of the distribution, the largest 0, -inf where cut
    lse                        [B] float64       out: their log-sum-exp; the draw used exp(processed - lse)

In Triton a program takes one split of a row, and the last one to arrive draws (draw.py) and writes `processed`.
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop, largest_loop
from foredraft.kernels.core.backend import constexpr, jit, njit, prange, tile_rows, tl
from foredraft.kernels.core.philox import DRAFT, uniform, uniform_reference, uniform_tile
from foredraft.kernels.core.split_softmax_triton import Scratch, combine_tile, split_sizes, split_tile, within
from foredraft.kernels.sampling.top_k_top_p import draw_loop, draw_reference, warp_loop, warp_reference


def sample_reference(logits, temperature, top_k, top_p, seeds, starts, offset, tokens, processed, lse) -> None:
    B, V = logits.shape
    weights = np.empty(V, np.float32)
    for b in range(B):
        if temperature[b] == 0:
            tokens[b], processed[b], lse[b] = int(np.argmax(logits[b])), logits[b], 0.0
            continue
        total = warp_reference(logits[b], temperature[b], int(top_k[b]), float(top_p[b]), weights)
        top = float(max(logits[b]))
        for i in range(V):
            processed[b, i] = (float(logits[b, i]) - top) / float(temperature[b]) if weights[i] > 0 else -math.inf
        lse[b] = math.log(total)
        tokens[b] = draw_reference(weights, total, uniform_reference(int(seeds[b]), DRAFT, int(starts[b]), offset))


@njit()
def _log_weights(logits, temperature, weights, processed):
    top, rate = largest_loop(logits), np.float32(1.0 / np.float64(temperature))
    for i in range(logits.shape[0]):
        processed[i] = (logits[i] - top) * rate if weights[i] > 0 else np.float32(-np.inf)


@njit(parallel=True)
def _sample_loop(logits, temperature, top_k, top_p, seeds, starts, offset, tokens, processed, lse):
    B, V = logits.shape
    for b in prange(B):
        if temperature[b] == 0:
            tokens[b] = argmax_loop(logits[b])
            processed[b] = logits[b]
            lse[b] = 0.0
        else:
            weights = np.empty(V, np.float32)
            total = warp_loop(logits[b], temperature[b], top_k[b], top_p[b], weights)
            _log_weights(logits[b], temperature[b], weights, processed[b])
            lse[b] = np.log(total)
            tokens[b] = draw_loop(weights, total, uniform(seeds[b], DRAFT, starts[b], offset))


def sample_numba(logits, temperature, top_k, top_p, seeds, starts, offset, tokens, processed, lse) -> None:
    _sample_loop(logits, temperature, top_k, top_p, seeds, starts, offset, tokens, processed, lse)


_DRAFT = constexpr(DRAFT)


@jit
def _sample_kernel(logits, temperature, floors, ties, seeds, starts, offset, maxima, tops, sums, tickets, tokens, processed,
                   lse, B, V, tokens_stride, processed_stride, lse_stride, ROWS: tl.constexpr, SUB: tl.constexpr,
                   SUBS: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr, SUMS_PAD: tl.constexpr,
                   CUT: tl.constexpr):
    group, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    b = group.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = b < B
    t = tl.load(temperature + b, mask=inside, other=1.0)
    rate = 1.0 / tl.where(t > 0, t, 1.0)
    split_tile(logits, b, inside, rate, split, floors, ties, maxima, tops, sums, V, SUB, SUBS, SPLITS, CUT)
    # all of this program's threads have written before its ticket says so
    tl.debug_barrier()
    if tl.atomic_add(tickets + group, 1, sem="acq_rel") == SPLITS - 1:
        tl.store(tickets + group, 0)
        floor, tie = rate, b
        if CUT:
            floor = tl.load(floors + b, mask=inside, other=0.0)
            tie = tl.load(ties + b, mask=inside, other=0).to(tl.int64)
        seed = tl.load(seeds + b, mask=inside, other=0)
        start = tl.load(starts + b, mask=inside, other=0)
        uniform = uniform_tile(seed, b * 0 + _DRAFT, start, b * 0 + offset)
        best, top, total, drawn = combine_tile(logits, b, inside, rate, uniform, floor, tie, maxima, tops, sums, V, SUB,
                                               SUBS, SPLITS, SPLITS_PAD, SUMS_PAD, CUT)
        sampled = t > 0
        tl.store(tokens + b * tokens_stride, tl.where(sampled, drawn, top).to(tl.int64), mask=inside)
        tl.store(lse + b * lse_stride, tl.where(sampled, tl.log(total), 0.0), mask=inside)
        shift = tl.where(sampled, best, 0.0)
        for first in range(0, V, SUB * SUBS):
            ids = first + tl.arange(0, SUB * SUBS)[None, :]
            known = inside[:, None] & (ids < V)
            x = tl.load(logits + b[:, None] * V + ids, mask=known, other=0.0).to(tl.float32)
            if CUT:
                x = within(x, ids, floor[:, None], tie[:, None])
            tl.store(processed + b[:, None] * processed_stride + ids, (x - shift[:, None]) * rate[:, None], mask=known)


def sample_triton(logits, temperature, floors, ties, seeds, starts, offset, tokens, processed, lse,
                  scratch: Scratch) -> None:
    """On a device: floors, ties [B, 1] as cut.py finds them, or None; outputs of any stride over B; scratch for R = 1."""
    B, V = logits.shape
    sizes = split_sizes(V)
    rows = tile_rows(B, sizes["SUB"] * sizes["SUBS"])
    _sample_kernel[(-(-B // rows) * sizes["SPLITS"],)](
        logits, temperature, floors, ties, seeds, starts, offset, *scratch, tokens, processed, lse, B, V, tokens.stride(0),
        processed.stride(0), lse.stride(0), ROWS=rows, **sizes, CUT=floors is not None, num_warps=8)


SAMPLE = {"reference": sample_reference, "numba": sample_numba}
