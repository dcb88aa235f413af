"""The accept-or-reject decisions of accept_triton.py, for all query positions of TILE_B sequences at once.

Arguments are those of _accept_kernel in accept_triton.py, whose programs have reduced the splits of the logits.
"""

from __future__ import annotations

from foredraft.kernels.core.backend_triton import constexpr, jit, tl
from foredraft.kernels.core.philox import ACCEPT, POINT, RESIDUAL
from foredraft.kernels.core.philox_triton import uniform_triton
from foredraft.kernels.core.split_softmax_triton import apply_filter, combine_splits
from foredraft.kernels.step.step_inputs_triton import tree_depths
from foredraft.kernels.verify.residual_triton import residual_masses, sample_residual

_POINT, _ACCEPT, _RESIDUAL = (constexpr(stream) for stream in (POINT, ACCEPT, RESIDUAL))


@jit
def _part(x, part, PARTS: tl.constexpr, SIZE: tl.constexpr):
    """The `part`-th SIZE values of x [PARTS * SIZE]."""
    here = tl.arange(0, PARTS)[:, None] == part
    return tl.sum(tl.where(here, tl.reshape(x, (PARTS, SIZE)), 0), axis=0)


@jit
def _with_part(x, part, values, PARTS: tl.constexpr, SIZE: tl.constexpr):
    here = tl.arange(0, PARTS)[:, None] == part
    return tl.reshape(tl.where(here, values[None, :], tl.reshape(x, (PARTS, SIZE))), (PARTS * SIZE,))


@jit
def _combine_rows(logits, row, read, rate, uniform, floor, tie, maxima, argmaxes, sums, V, PARTS: tl.constexpr,
                  SIZE: tl.constexpr, SUB: tl.constexpr, SUBS: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr,
                  SUMS_PAD: tl.constexpr, FILTERED: tl.constexpr):
    """combine_splits of rows [PARTS * SIZE], SIZE rows at a time."""
    if PARTS == 1:
        best, top, total, drawn = combine_splits(logits, row, read, rate, uniform, floor, tie, maxima, argmaxes, sums, V,
                                                 SUB, SUBS, SPLITS, SPLITS_PAD, SUMS_PAD, FILTERED)
    else:
        best, total = tl.zeros((PARTS * SIZE,), tl.float32), tl.zeros((PARTS * SIZE,), tl.float64)
        top, drawn = tl.zeros((PARTS * SIZE,), tl.int32), tl.zeros((PARTS * SIZE,), tl.int32)
        for part in range(PARTS):
            best_of, top_of, total_of, drawn_of = combine_splits(
                logits, _part(row, part, PARTS, SIZE), _part(read.to(tl.int32), part, PARTS, SIZE) != 0,
                _part(rate, part, PARTS, SIZE), _part(uniform, part, PARTS, SIZE), _part(floor, part, PARTS, SIZE),
                _part(tie, part, PARTS, SIZE), maxima, argmaxes, sums, V, SUB, SUBS, SPLITS, SPLITS_PAD, SUMS_PAD, FILTERED)
            best, top = _with_part(best, part, best_of, PARTS, SIZE), _with_part(top, part, top_of, PARTS, SIZE)
            total, drawn = _with_part(total, part, total_of, PARTS, SIZE), _with_part(drawn, part, drawn_of, PARTS, SIZE)
    return best, top, total, drawn


@jit
def decide(
    logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, floors, ties, seeds,
    maxima, argmaxes, sums, lengths, finished, group, B, V, draft_stride_b, draft_stride_k, lse_stride_b, lse_stride_k,
    K: tl.constexpr, TILE_B: tl.constexpr, R_PAD: tl.constexpr, PARTS: tl.constexpr, SUB: tl.constexpr, SUBS: tl.constexpr,
    SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr, SUMS_PAD: tl.constexpr, CHUNK: tl.constexpr, CHUNKS_PAD: tl.constexpr,
    DENSE: tl.constexpr, FILTERED: tl.constexpr, TREE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """[TILE_B, R_PAD]: the token after each query position, and whether the draft after it is accepted; group int64."""
    R: tl.constexpr = K + 1
    b = group * TILE_B + tl.arange(0, TILE_B)
    # TILE_B x R_PAD query positions, flattened
    j = tl.arange(0, TILE_B * R_PAD)
    jb, jr = group * TILE_B + j // R_PAD, (j % R_PAD).to(tl.int64)
    jinside = jb < B
    proposed = tl.load(draft_lengths + jb, mask=jinside, other=-1)
    jread = jinside & (jr <= proposed) & (tl.load(finished + jb, mask=jinside, other=1) == 0)
    jrow = jb * R + jr
    t = tl.load(temperature + jb, mask=jinside, other=1.0)
    rate = 1.0 / tl.where(t > 0, t, 1.0)
    floor, tie = rate, jr
    if FILTERED:
        floor = tl.load(floors + jrow, mask=jread, other=0.0)
        tie = tl.load(ties + jrow, mask=jread, other=0).to(tl.int64)

    seed = tl.load(seeds + jb, mask=jinside, other=0)
    start = tl.load(lengths + jb, mask=jinside, other=0)
    depth = jr
    if TREE:
        in_tree = group * TILE_B + tl.arange(0, TILE_B)
        depth = tl.reshape(tree_depths(parents, in_tree, in_tree < B, K, R_PAD), (TILE_B * R_PAD,))
    stream, position, offset = jr * 0 + _POINT, start + depth, jr * 0
    is_dense = jread & False
    if DENSE:
        is_dense = jread & (tl.load(dense + jb, mask=jinside, other=0) != 0) & (t > 0)
        stream = tl.where(is_dense, _RESIDUAL, stream)
        position, offset = tl.where(is_dense, start, position), tl.where(is_dense, jr, offset)
    uniform = uniform_triton(seed, stream, position, offset)

    best, top, total, drawn = _combine_rows(logits, jrow, jread, rate, uniform, floor, tie, maxima, argmaxes, sums, V, PARTS,
                                            TILE_B * R_PAD // PARTS, SUB, SUBS, SPLITS, SPLITS_PAD, SUMS_PAD, FILTERED)
    token = tl.where(t > 0, drawn, top).to(tl.int64)

    tested = jread & (jr < proposed)
    draft = tl.load(draft_tokens + jb * K + jr, mask=tested, other=0)
    is_accepted = tested & (draft == token)
    if DENSE:
        px = tl.load(logits + jrow * V + draft, mask=tested & is_dense, other=float("-inf")).to(tl.float32)
        if FILTERED:
            px = apply_filter(px, draft, floor, tie)
        p = tl.exp((px - best) * rate).to(tl.float64) / total
        at = jb * draft_stride_b + jr * draft_stride_k
        qx = tl.load(draft_logits + at + draft, mask=tested & is_dense, other=0.0).to(tl.float64)
        lse = tl.load(draft_lse + jb * lse_stride_b + jr * lse_stride_k, mask=tested & is_dense, other=0.0)
        coin = uniform_triton(seed, jr * 0 + _ACCEPT, start, jr)
        is_accepted = tl.where(is_dense, tested & (coin * tl.exp(qx - lse) <= p), is_accepted)
        n = tl.arange(0, R_PAD)[None, :]
        bests, rates, totals, lses = (tl.reshape(best, (TILE_B, R_PAD)), tl.reshape(rate, (TILE_B, R_PAD)),
                                      tl.reshape(total, (TILE_B, R_PAD)), tl.reshape(lse, (TILE_B, R_PAD)))
        floors_at, ties_at = tl.reshape(floor, (TILE_B, R_PAD)), tl.reshape(tie, (TILE_B, R_PAD))
        is_tested = is_dense & tested
        masses = tl.zeros((TILE_B, CHUNKS_PAD), tl.float64)
        prefix = tl.full((TILE_B, R_PAD), 1.0, tl.float64)
        if BLOCK:
            last = tl.sum(tl.reshape(is_tested.to(tl.int64), (TILE_B, R_PAD)), axis=1)
            length = last
            # P_i of block.py
            ratio = tl.reshape(tl.where(is_tested, p / tl.exp(qx - lse), 1.0), (TILE_B, R_PAD))
            so_far = tl.full((TILE_B,), 1.0, tl.float64)
            for i in range(K):
                so_far = tl.minimum(so_far * tl.sum(tl.where(n == i, ratio, 0.0), axis=1), 1.0)
                prefix = tl.where(n == i + 1, so_far[:, None], prefix)
            coins = tl.reshape(tl.where(is_tested, coin, 1.0), (TILE_B, R_PAD))
            u = tl.sum(tl.where(n == length[:, None] - 1, coins, 0.0), axis=1)
            undecided = (length > 0) & (u > tl.sum(tl.where(n == length[:, None], prefix, 0.0), axis=1))
            for step in range(K):
                # from the longest prefix down: the first that passes is accepted
                i = K - 1 - step
                active = undecided & (i < length)
                if tl.max(active.to(tl.int32), axis=0) > 0:
                    here = (n == i) & active[:, None]
                    part = tl.sum(tl.where(here, prefix, 0.0), axis=1)
                    found = residual_masses(
                        logits, draft_logits, b * R + i, b * draft_stride_b + i * draft_stride_k,
                        tl.sum(tl.where(here, bests, 0.0), axis=1), tl.sum(tl.where(here, rates, 0.0), axis=1),
                        (part / tl.where(active, tl.sum(tl.where(here, totals, 0.0), axis=1), 1.0)).to(tl.float32),
                        tl.sum(tl.where(here, lses, 0.0), axis=1).to(tl.float32), active,
                        tl.sum(tl.where(here, floors_at, 0.0), axis=1), tl.sum(tl.where(here, ties_at, 0), axis=1), V,
                        CHUNK, CHUNKS_PAD, FILTERED)
                    mass = tl.sum(found, axis=1)
                    u = tl.sum(tl.where(n == i - 1, coins, 0.0), axis=1)
                    stop = active & ((i == 0) | (u * (mass + 1.0 - part) <= mass))
                    masses = tl.where(stop[:, None], found, masses)
                    last = tl.where(stop, i, last)
                    undecided = undecided & (stop == 0)
            rejected = last < length
            within_prefix = tl.reshape(n + tl.zeros((TILE_B, R_PAD), tl.int32) < last[:, None], (TILE_B * R_PAD,))
            is_accepted = tl.where(is_dense, within_prefix, is_accepted)
        else:
            # the first rejected draft, if any
            rejections = tl.reshape((is_tested & (is_accepted == 0)).to(tl.int32), (TILE_B, R_PAD))
            last = tl.min(tl.where(rejections != 0, n, R_PAD), axis=1).to(tl.int64)
            rejected = last < R_PAD
        if tl.max(rejected.to(tl.int32), axis=0) > 0:
            here = n == last[:, None]
            row, draft_row = b * R + last, b * draft_stride_b + last * draft_stride_k
            best_at, rate_at = tl.sum(tl.where(here, bests, 0.0), axis=1), tl.sum(tl.where(here, rates, 0.0), axis=1)
            total_at = tl.where(rejected, tl.sum(tl.where(here, totals, 0.0), axis=1), 1.0)
            scale_at = (tl.sum(tl.where(here, prefix, 0.0), axis=1) / total_at).to(tl.float32)
            lse_at = tl.sum(tl.where(here, lses, 0.0), axis=1).to(tl.float32)
            uniform_at = tl.sum(tl.where(here, tl.reshape(uniform, (TILE_B, R_PAD)), 0.0), axis=1)
            floor_at, tie_at = tl.sum(tl.where(here, floors_at, 0.0), axis=1), tl.sum(tl.where(here, ties_at, 0), axis=1)
            if BLOCK == 0:
                masses = residual_masses(logits, draft_logits, row, draft_row, best_at, rate_at, scale_at, lse_at, rejected,
                                         floor_at, tie_at, V, CHUNK, CHUNKS_PAD, FILTERED)
            residual = sample_residual(logits, draft_logits, row, draft_row, best_at, rate_at, scale_at, lse_at, masses,
                                       uniform_at, rejected, floor_at, tie_at, V, CHUNK, CHUNKS_PAD, FILTERED)
            replaced = tl.reshape(here & (rejected & (tl.sum(masses, axis=1) > 0))[:, None], (TILE_B * R_PAD,))
            spread = tl.reshape(residual[:, None] + tl.zeros((TILE_B, R_PAD), tl.int64), (TILE_B * R_PAD,))
            token = tl.where(replaced, spread, token)
        token = tl.where(is_dense & is_accepted, draft, token)
    return tl.reshape(token, (TILE_B, R_PAD)), tl.reshape(is_accepted.to(tl.int32), (TILE_B, R_PAD)) != 0
