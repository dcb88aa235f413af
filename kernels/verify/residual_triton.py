"""The residual distribution max(0, scale p - q) in Triton, one row of logits for each of N sequences.

    logits, draft_logits      as in accept_triton.py; row, draft_row [N]: offset of p in rows of V, of q in elements
    best, rate, scale, lse    [N] float32: p's largest logit, 1 / temperature, what p's weights are multiplied by, q's lse
    read                      [N] bool; floor, tie [N]: p's filter (sampling/top_k_top_p_triton.py)
"""

from __future__ import annotations

from foredraft.kernels.core.backend_triton import jit, tl
from foredraft.kernels.core.split_softmax_triton import apply_filter, first_hit


@jit
def residual_masses(logits, draft_logits, row, draft_row, best, rate, scale, lse, read, floor, tie, V, CHUNK: tl.constexpr,
                    CHUNKS_PAD: tl.constexpr, FILTERED: tl.constexpr):
    """[N, CHUNKS_PAD] float64: sums of CHUNK weights each; 0 where not `read`."""
    i = tl.arange(0, CHUNK)[None, :]
    c = tl.arange(0, CHUNKS_PAD)[None, :]
    masses = tl.zeros((row.shape[0], CHUNKS_PAD), tl.float64)
    for chunk in range(tl.cdiv(V, CHUNK)):
        weights = _weights(logits, draft_logits, row, draft_row, chunk * CHUNK + i, best, rate, scale, lse, read, floor, tie,
                           V, FILTERED)
        masses = tl.where(c == chunk, tl.sum(weights, axis=1).to(tl.float64)[:, None], masses)
    return masses


@jit
def sample_residual(logits, draft_logits, row, draft_row, best, rate, scale, lse, masses, uniform, read, floor, tie, V,
                    CHUNK: tl.constexpr, CHUNKS_PAD: tl.constexpr, FILTERED: tl.constexpr):
    """Sample a token [N] by inverse CDF, given residual_masses and uniform [N] float64."""
    i = tl.arange(0, CHUNK)[None, :]
    c = tl.arange(0, CHUNKS_PAD)[None, :]
    threshold = uniform * tl.sum(masses, axis=1)
    chosen = first_hit(tl.cumsum(masses, axis=1) > threshold[:, None], masses > 0, c, CHUNKS_PAD)
    before = tl.sum(tl.where(c < chosen[:, None], masses, 0.0), axis=1)
    token = chosen[:, None] * CHUNK + i
    weights = _weights(logits, draft_logits, row, draft_row, token, best, rate, scale, lse, read, floor, tie, V, FILTERED)
    reached = tl.cumsum(weights, axis=1)
    return chosen * CHUNK + first_hit(reached > (threshold - before).to(tl.float32)[:, None], weights > 0, i, CHUNK)


@jit
def _weights(logits, draft_logits, row, draft_row, token, best, rate, scale, lse, read, floor, tie, V,
             FILTERED: tl.constexpr):
    read = read[:, None] & (token < V)
    x = tl.load(logits + row[:, None] * V + token, mask=read, other=float("-inf")).to(tl.float32)
    if FILTERED:
        x = apply_filter(x, token, floor[:, None], tie[:, None])
    y = tl.load(draft_logits + draft_row[:, None] + token, mask=read, other=float("-inf"))
    weights = tl.exp((x - best[:, None]) * rate[:, None]) * scale[:, None] - tl.exp(y - lse[:, None])
    return tl.where(read & (weights > 0), weights, 0.0)
