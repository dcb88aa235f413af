"""top-k and top-p in Triton: the filter of each row of logits as one threshold.

    logits          [B, R, V] float32 or bfloat16
    draft_lengths, finished, temperature, top_k, top_p [B]    as in verify/accept.py
    floors          [B, R] float32    out: logits above the floor are kept, and at the floor tokens up to the tie;
    ties            [B, R] int32      out: -inf and V - 1 where nothing is filtered

The rules are those of top_k_top_p.py. A program takes one row. It finds both thresholds by bisection over the ordered bits
of the logits: the k-th largest by counts, then the nucleus by sums of weights among the tokens that top-k kept. Each takes
up to 32 passes over the row (16 in bfloat16), which stays in the caches. Greedy rows, rows that are not read and rows
without top-k and top-p end at once.
"""

from __future__ import annotations

import torch

from foredraft.kernels.core.backend import jit, power_of_2, sequences_per_program, tl

TILE = 4096


@jit
def _ordered(x):
    """float32 to int32 of the same order; -0.0 and 0.0 are equal."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@jit
def _floats(order):
    """The inverse of _ordered."""
    return tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)


@jit
def _at_least(logits, row, active, order, least, top, rate, V, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """How many logits of a row have an order >= max(order, least), or their total weight (BY_MASS)."""
    found = tl.zeros((row.shape[0], TILE), tl.float32)
    i = tl.arange(0, TILE)[None, :]
    for first in range(0, V, TILE):
        read = active[:, None] & (first + i < V)
        x = tl.load(logits + row[:, None] * V + first + i, mask=read, other=float("-inf")).to(tl.float32)
        at = _ordered(x)
        inside = read & (at >= tl.maximum(order, least)[:, None])
        weight = tl.exp((x - top[:, None]) * rate[:, None]) if BY_MASS else at * 0.0 + 1.0
        found += tl.where(inside, weight, 0.0)
    # sum after the loop: triton 3.6 fails on sums inside a loop that are used more than once
    return tl.sum(found, axis=1).to(tl.float64)


@jit
def _bisect(logits, row, active, wanted, low, high, least, top, rate, V, BY_MASS: tl.constexpr, TILE: tl.constexpr,
            SHIFT: tl.constexpr):
    """The highest order at and above which a row has at least `wanted` logits, or weight (BY_MASS)."""
    # in steps of the logits' resolution: bfloat16 has zeros in the low half of the bits
    low, high = tl.where(active, low, 0).to(tl.int64) >> SHIFT, tl.where(active, high, 0).to(tl.int64) >> SHIFT
    while tl.max(high - low, axis=0) > 0:
        middle = (low + high + 1) >> 1
        order = (middle << SHIFT).to(tl.int32)
        enough = _at_least(logits, row, active, order, least, top, rate, V, BY_MASS, TILE) >= wanted
        low, high = tl.where(enough, middle, low), tl.where(enough, high, tl.maximum(middle - 1, low))
    # in the order of a negative number the low bits are ones
    return ((low << SHIFT) + tl.where(low < 0, (1 << SHIFT) - 1, 0)).to(tl.int32)


@jit
def _top_k_top_p_kernel(logits, draft_lengths, finished, temperature, top_k, top_p, floors, ties, B, V, R: tl.constexpr,
                        ROWS: tl.constexpr, TILE: tl.constexpr, SHIFT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < B * R
    b, r = row // R, row % R
    k, p = tl.load(top_k + b, mask=inside, other=0), tl.load(top_p + b, mask=inside, other=1.0)
    t = tl.load(temperature + b, mask=inside, other=0.0)
    live = inside & (tl.load(finished + b, mask=inside, other=1) == 0) & (t > 0)
    live = live & (r <= tl.load(draft_lengths + b, mask=inside, other=-1))
    by_k, by_p = live & (k > 0) & (k < V), live & (p < 1.0)
    active = by_k | by_p
    tl.store(floors + row, float("-inf"), mask=inside)
    tl.store(ties + row, V - 1, mask=inside)
    if tl.max(active.to(tl.int32), axis=0) > 0:
        rate = 1.0 / tl.where(t > 0, t, 1.0)
        i = tl.arange(0, TILE)[None, :]
        largest = tl.full((ROWS, TILE), float("-inf"), tl.float32)
        for first in range(0, V, TILE):
            x = tl.load(logits + row[:, None] * V + first + i, mask=active[:, None] & (first + i < V), other=float("-inf"))
            largest = tl.maximum(largest, x.to(tl.float32))
        top = tl.max(largest, axis=1)
        highest = _ordered(tl.where(active, top, 0.0))
        lowest = tl.zeros((ROWS,), tl.int32) + (-2139095041)  # the order of -inf
        least = lowest
        if tl.max(by_k.to(tl.int32), axis=0) > 0:
            found = _bisect(logits, row, by_k, k.to(tl.float64), lowest, highest, lowest, top, rate, V, False, TILE, SHIFT)
            least = tl.where(by_k, found, lowest)
        order, tie = least, tl.zeros((ROWS,), tl.int32) + (V - 1)
        if tl.max(by_p.to(tl.int32), axis=0) > 0:
            total = _at_least(logits, row, by_p, least, least, top, rate, V, True, TILE)
            wanted = p.to(tl.float64) * total
            nucleus = _bisect(logits, row, by_p, wanted, least, highest, least, top, rate, V, True, TILE, SHIFT)
            # tokens at the floor are kept, the lowest first, while the mass before them is below `wanted`
            above = _at_least(logits, row, by_p, nucleus + 1, least, top, rate, V, True, TILE)
            one = tl.exp((_floats(nucleus) - top) * rate).to(tl.float64)
            kept = tl.maximum(tl.ceil((wanted - above) / tl.where(by_p & (one > 0), one, 1.0)), 1.0)
            order = tl.where(by_p, nucleus, order)
            seen = tl.zeros((ROWS,), tl.int32)
            last = tl.zeros((ROWS, TILE), tl.int32)
            for first in range(0, V, TILE):
                read = by_p[:, None] & (first + i < V)
                x = tl.load(logits + row[:, None] * V + first + i, mask=read, other=0.0).to(tl.float32)
                equal = (read & (_ordered(x) == nucleus[:, None])).to(tl.int32)
                rank = seen[:, None] + tl.cumsum(equal, axis=1)
                chosen = (equal != 0) & (rank.to(tl.float64) <= kept[:, None])
                last = tl.maximum(last, tl.where(chosen, first + i, 0))
                seen = tl.max(rank, axis=1)
            tie = tl.where(by_p, tl.max(last, axis=1), tie)
        tl.store(floors + row, _floats(order), mask=active)
        tl.store(ties + row, tie, mask=active)


def top_k_top_p_triton(logits, draft_lengths, finished, temperature, top_k, top_p, floors, ties) -> None:
    """One launch, without synchronisation."""
    B, R, V = logits.shape
    tile = min(TILE, power_of_2(V))
    rows = sequences_per_program(B * R, tile)
    _top_k_top_p_kernel[(-(-(B * R) // rows),)](
        logits, draft_lengths, finished, temperature, top_k, top_p, floors, ties, B, V, R=R, ROWS=rows, TILE=tile,
        SHIFT=16 if logits.dtype == torch.bfloat16 else 0, num_warps=8)
