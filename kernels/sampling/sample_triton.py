"""sample.py in Triton; its contract holds.

A program reads one split of a sequence's logits; the last program of a sequence samples (core/split_softmax_triton.py) and
writes `processed`.
"""

from __future__ import annotations

from foredraft.kernels.core.backend_triton import constexpr, jit, sequences_per_program, tl
from foredraft.kernels.core.philox import DRAFT
from foredraft.kernels.core.philox_triton import uniform_triton
from foredraft.kernels.core.split_softmax_triton import Scratch, apply_filter, combine_splits, split_sizes, split_softmax

_DRAFT = constexpr(DRAFT)


@jit(do_not_specialize=["offset", "tokens", "lse", "B", "tokens_stride", "lse_stride"])
def _sample_kernel(logits, temperature, floors, ties, seeds, starts, offset, maxima, argmaxes, sums, tickets, tokens,
                   processed, lse, B, V, tokens_stride, processed_stride, lse_stride, TILE_B: tl.constexpr,
                   SUB: tl.constexpr, SUBS: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr,
                   SUMS_PAD: tl.constexpr, FILTERED: tl.constexpr):
    group, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    b = group.to(tl.int64) * TILE_B + tl.arange(0, TILE_B)
    inside = b < B
    t = tl.load(temperature + b, mask=inside, other=1.0)
    rate = 1.0 / tl.where(t > 0, t, 1.0)
    split_softmax(logits, b, inside, rate, split, floors, ties, maxima, argmaxes, sums, V, SUB, SUBS, SPLITS, FILTERED)
    # all threads of the program have written before it takes its ticket
    tl.debug_barrier()
    if tl.atomic_add(tickets + group, 1, sem="acq_rel") == SPLITS - 1:
        tl.store(tickets + group, 0)
        floor, tie = rate, b
        if FILTERED:
            floor = tl.load(floors + b, mask=inside, other=0.0)
            tie = tl.load(ties + b, mask=inside, other=0).to(tl.int64)
        seed = tl.load(seeds + b, mask=inside, other=0)
        start = tl.load(starts + b, mask=inside, other=0)
        uniform = uniform_triton(seed, b * 0 + _DRAFT, start, b * 0 + offset)
        best, top, total, drawn = combine_splits(logits, b, inside, rate, uniform, floor, tie, maxima, argmaxes, sums, V,
                                                 SUB, SUBS, SPLITS, SPLITS_PAD, SUMS_PAD, FILTERED)
        sampled = t > 0
        tl.store(tokens + b * tokens_stride, tl.where(sampled, drawn, top).to(tl.int64), mask=inside)
        tl.store(lse + b * lse_stride, tl.where(sampled, tl.log(total), 0.0), mask=inside)
        shift = tl.where(sampled, best, 0.0)
        for first in range(0, V, SUB * SUBS):
            token = first + tl.arange(0, SUB * SUBS)[None, :]
            known = inside[:, None] & (token < V)
            x = tl.load(logits + b[:, None] * V + token, mask=known, other=0.0).to(tl.float32)
            if FILTERED:
                x = apply_filter(x, token, floor[:, None], tie[:, None])
            tl.store(processed + b[:, None] * processed_stride + token, (x - shift[:, None]) * rate[:, None], mask=known)


def sample_triton(logits, temperature, floors, ties, seeds, starts, offset, tokens, processed, lse,
                  scratch: Scratch) -> None:
    """One launch, without synchronisation. Outputs may have any stride over B; `scratch` is made for R = 1.

    floors, ties [B, 1] as top_k_top_p_triton.py writes them, or None without top-k and top-p.
    """
    B, V = logits.shape
    sizes = split_sizes(V)
    tile = sequences_per_program(B, sizes["SUB"] * sizes["SUBS"])
    _sample_kernel[(-(-B // tile) * sizes["SPLITS"],)](
        logits, temperature, floors, ties, seeds, starts, offset, *scratch, tokens, processed, lse, B, V, tokens.stride(0),
        processed.stride(0), lse.stride(0), TILE_B=tile, **sizes, FILTERED=floors is not None, num_warps=8)
