"""The inputs of a neural drafter on a GPU, and the lengths of its drafts.

    tokens [B, T + 1], lengths [B] int64, finished [B] bool, limits, budgets [B] int64, temperature [B]     the decode state

  drafter_inputs
    read, positions [B, 2] int64   out: the last two committed tokens and their positions, -1: not read
    later        [K, B] int64      out: position of draft token k if another one follows it, else -1
    dense        [B] bool          out: sequences that sample

  draft_lengths
    drafted      [B, K] int64      draft tokens
    counts       [B] int64         out: draft lengths, cut after the end token

Two committed tokens are enough: states cached for accepted drafts are valid, and the drafter has not read its own last
draft token. After a rejection one token is uncached, after a fully accepted draft two are.
"""

from __future__ import annotations

from foredraft.kernels.core.backend_triton import jit, power_of_2, sequences_per_program, tl
from foredraft.kernels.step.step_inputs_triton import drafts_allowed


@jit(do_not_specialize=["B", "T1", "K"])
def _drafter_inputs_kernel(tokens, lengths, finished, limits, budgets, temperature, read, positions, later, dense, B, T1, K,
                           TILE_B: tl.constexpr, K_PAD: tl.constexpr):
    b = tl.program_id(0).to(tl.int64) * TILE_B + tl.arange(0, TILE_B)
    inside = b < B
    length = tl.load(lengths + b, mask=inside, other=1)
    live = inside & (tl.load(finished + b, mask=inside, other=1) == 0)
    two = tl.arange(0, 2)[None, :]
    position = length[:, None] - 2 + two
    is_read = live[:, None] & (position >= 0)
    token = tl.load(tokens + b[:, None] * T1 + position, mask=is_read, other=0)
    tl.store(read + b[:, None] * 2 + two, token, mask=inside[:, None])
    tl.store(positions + b[:, None] * 2 + two, tl.where(is_read, position, -1), mask=inside[:, None])
    k = tl.arange(0, K_PAD)[None, :]
    allowed = tl.minimum(drafts_allowed(b, inside, lengths, limits, finished, budgets), K)
    tl.store(later + k * B + b[:, None], tl.where(k + 1 < allowed[:, None], length[:, None] + k, -1),
             mask=inside[:, None] & (k < K))
    tl.store(dense + b, tl.load(temperature + b, mask=inside, other=0.0) > 0, mask=inside)


@jit(do_not_specialize=["B", "K"])
def _draft_lengths_kernel(drafted, lengths, finished, limits, budgets, counts, end_token, B, K, TILE_B: tl.constexpr,
                          K_PAD: tl.constexpr):
    b = tl.program_id(0).to(tl.int64) * TILE_B + tl.arange(0, TILE_B)
    inside = b < B
    k = tl.arange(0, K_PAD)[None, :]
    token = tl.load(drafted + b[:, None] * K + k, mask=inside[:, None] & (k < K), other=-1)
    allowed = tl.minimum(drafts_allowed(b, inside, lengths, limits, finished, budgets), K)
    ended = tl.min(tl.where((token == end_token) & (k < K), k + 1, K).to(tl.int64), axis=1)
    tl.store(counts + b, tl.minimum(allowed, ended), mask=inside)


def drafter_inputs_triton(tokens, lengths, finished, limits, budgets, temperature, read, positions, later, dense) -> None:
    """One launch, without synchronisation."""
    (B, T1), K = tokens.shape, later.shape[0]
    tile = sequences_per_program(B, K)
    _drafter_inputs_kernel[(-(-B // tile),)](tokens, lengths, finished, limits, budgets, temperature, read, positions, later,
                                             dense, B, T1, K, TILE_B=tile, K_PAD=power_of_2(K), num_warps=1)


def draft_lengths_triton(drafted, lengths, finished, limits, budgets, end_token, counts) -> None:
    """One launch, without synchronisation."""
    B, K = drafted.shape
    tile = sequences_per_program(B, K)
    _draft_lengths_kernel[(-(-B // tile),)](drafted, lengths, finished, limits, budgets, counts, end_token, B, K,
                                            TILE_B=tile, K_PAD=power_of_2(K), num_warps=1)
