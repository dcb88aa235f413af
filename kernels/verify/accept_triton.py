"""Verifications on a device: accept.py's contract in Triton, one launch for a batch, in which rows are committed too.

A program of _accept_kernel reads one split of the vocabulary for one row of the target (grid: batch x R x splits), as
draw.py says. The last program of a batch row to arrive, by an atomic ticket, makes all R draws at once, and then: the
leading run of drafts that stand, for a rejected dense draft one more pass over that row of p and q, and commit.py. Blocks
(block.py) take such a pass for every length that is weighed, from the longest down to the one that stands.

    logits        [B, R, V] float32 or bfloat16, contiguous; rows past a row's draft, and finished rows, are not read
    draft_logits  [B, K, V] float32 of any strides over the first two axes, draft_lse [B, K] float64; None: no dense rows
    floors, ties  [B, R] float32, int32, or None: the distribution keeps logits above the floor, and at the floor ids up to the
                  tie (cut.py, for top-k and top-p)
    the rest      as in accept.py and commit.py; lengths are accept.py's starts
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from foredraft.kernels.core.backend import constexpr, jit, power_of_2, tile_rows, tl
from foredraft.kernels.core.philox import ACCEPT, POINT, RESIDUAL, uniform_tile
from foredraft.kernels.core.split_softmax_triton import Scratch, combine_tile, first_hit, split_sizes, split_tile, within
from foredraft.kernels.step.commit import commit_tile
from foredraft.kernels.step.step_inputs import depths

_POINT, _ACCEPT, _RESIDUAL = (constexpr(stream) for stream in (POINT, ACCEPT, RESIDUAL))
# Ids of a residual that are read together; rows of a request that are drawn together: more would not stay in registers.
CHUNK, TOGETHER = 1024, 16


@jit
def walk_tile(tokens, stands, draft_tokens, parents, b, inside, proposed, K: tl.constexpr, R_PAD: tl.constexpr,
              TREE: tl.constexpr):
    """From each row's token and, in a chain, whether the draft after it stands, [N, R_PAD], to the ids emitted, the rows
    walked, the rows after those, [N, R_PAD], and how many drafts were accepted, [N]."""
    row = tl.arange(0, R_PAD)[None, :].to(tl.int64)
    if TREE:
        emitted, walked, following = tokens * 0, tokens * 0, tokens * 0
        at = tl.zeros((b.shape[0],), tl.int64)
        accepted = at
        active = inside
        drafted = inside[:, None] & (row < proposed[:, None])
        drafts = tl.load(draft_tokens + b[:, None] * K + row, mask=drafted, other=0)
        above = tl.load(parents + b[:, None] * K + row, mask=drafted, other=-1)
        for step in range(K + 1):
            token = tl.sum(tl.where(row == at[:, None], tokens, 0), axis=1)
            child = tl.min(tl.where((above == at[:, None]) & (drafts == token[:, None]), row + 1, R_PAD + 1), axis=1)
            now = active[:, None] & (row == step)
            emitted = tl.where(now, token[:, None], emitted)
            walked = tl.where(now, at[:, None], walked)
            active = active & (child <= R_PAD)
            following = tl.where(now & active[:, None], child[:, None], following)
            accepted += active.to(tl.int64)
            at = tl.where(active, child, at)
    else:
        accepted = tl.min(tl.where(stands, R_PAD, row), axis=1)
        emitted, walked = tokens, row + tokens * 0
        following = walked + 1
    return emitted, walked, following, accepted


@jit
def finish_tile(emitted, walked, following, accepted, b, inside, verified_tokens, verified_counts, path, draft_lengths,
                draft_proposers, produced, limits, end_token, tokens, proposer, lengths, finished, hidden, rounds, covered,
                drafted, tested_at, accepted_at, last_counts, last_tested, last_accepted, T1, C, K: tl.constexpr,
                R_PAD: tl.constexpr, C_TILE: tl.constexpr, COMMIT: tl.constexpr):
    """Write the verification, and commit it."""
    n = tl.arange(0, R_PAD)[None, :]
    written = inside[:, None] & (n <= accepted[:, None])
    place = b[:, None] * (K + 1) + n
    tl.store(verified_tokens + place, emitted, mask=written)
    tl.store(path + place, walked, mask=written)
    tl.store(verified_counts + b, accepted + 1, mask=inside)
    if COMMIT:
        reached = tl.minimum(tl.load(draft_lengths + b, mask=inside, other=0), accepted + 1)
        commit_tile(b, inside, emitted, walked, following, accepted, reached, draft_lengths, draft_proposers, produced, limits,
                    end_token, tokens, proposer, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at,
                    last_counts, last_tested, last_accepted, T1, C, K, R_PAD, C_TILE)


@jit
def _residual_masses(logits, draft_logits, row, draft_row, best, rate, scale, lse, read, floor, tie, V,
                     CHUNK: tl.constexpr, CHUNKS_PAD: tl.constexpr, CUT: tl.constexpr):
    """Of max(0, scale p - q), [N, CHUNKS_PAD] float64, CHUNK ids a sum; 0 where not `read`."""
    i = tl.arange(0, CHUNK)[None, :]
    c = tl.arange(0, CHUNKS_PAD)[None, :]
    masses = tl.zeros((row.shape[0], CHUNKS_PAD), tl.float64)
    for chunk in range(tl.cdiv(V, CHUNK)):
        rest = _residual_weights(logits, draft_logits, row, draft_row, chunk * CHUNK + i, best, rate, scale, lse, read,
                                 floor, tie, V, CUT)
        masses = tl.where(c == chunk, tl.sum(rest, axis=1).to(tl.float64)[:, None], masses)
    return masses


@jit
def _residual_token(logits, draft_logits, row, draft_row, best, rate, scale, lse, masses, uniform, read, floor, tie, V,
                    CHUNK: tl.constexpr, CHUNKS_PAD: tl.constexpr, CUT: tl.constexpr):
    """Draw from max(0, scale p - q), [N], whose masses are known."""
    i = tl.arange(0, CHUNK)[None, :]
    c = tl.arange(0, CHUNKS_PAD)[None, :]
    threshold = uniform * tl.sum(masses, axis=1)
    chosen = first_hit(tl.cumsum(masses, axis=1) > threshold[:, None], masses > 0, c, CHUNKS_PAD)
    before = tl.sum(tl.where(c < chosen[:, None], masses, 0.0), axis=1)
    ids = chosen[:, None] * CHUNK + i
    rest = _residual_weights(logits, draft_logits, row, draft_row, ids, best, rate, scale, lse, read, floor, tie, V, CUT)
    reached = tl.cumsum(rest, axis=1)
    return chosen * CHUNK + first_hit(reached > (threshold - before).to(tl.float32)[:, None], rest > 0, i, CHUNK)


@jit
def _residual_weights(logits, draft_logits, row, draft_row, ids, best, rate, scale, lse, read, floor, tie, V,
                      CUT: tl.constexpr):
    read = read[:, None] & (ids < V)
    x = tl.load(logits + row[:, None] * V + ids, mask=read, other=float("-inf")).to(tl.float32)
    if CUT:
        x = within(x, ids, floor[:, None], tie[:, None])
    y = tl.load(draft_logits + draft_row[:, None] + ids, mask=read, other=float("-inf"))
    rest = tl.exp((x - best[:, None]) * rate[:, None]) * scale[:, None] - tl.exp(y - lse[:, None])
    return tl.where(read & (rest > 0), rest, 0.0)


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
def _combine_rows(logits, row, read, rate, uniform, floor, tie, maxima, tops, sums, V, PARTS: tl.constexpr,
                  SIZE: tl.constexpr, SUB: tl.constexpr, SUBS: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr,
                  SUMS_PAD: tl.constexpr, CUT: tl.constexpr):
    """combine_tile of rows [PARTS * SIZE], SIZE at once."""
    if PARTS == 1:
        best, top, total, drawn = combine_tile(logits, row, read, rate, uniform, floor, tie, maxima, tops, sums, V, SUB,
                                               SUBS, SPLITS, SPLITS_PAD, SUMS_PAD, CUT)
    else:
        best, total = tl.zeros((PARTS * SIZE,), tl.float32), tl.zeros((PARTS * SIZE,), tl.float64)
        top, drawn = tl.zeros((PARTS * SIZE,), tl.int32), tl.zeros((PARTS * SIZE,), tl.int32)
        for part in range(PARTS):
            best_of, top_of, total_of, drawn_of = combine_tile(
                logits, _part(row, part, PARTS, SIZE), _part(read.to(tl.int32), part, PARTS, SIZE) != 0,
                _part(rate, part, PARTS, SIZE), _part(uniform, part, PARTS, SIZE), _part(floor, part, PARTS, SIZE),
                _part(tie, part, PARTS, SIZE), maxima, tops, sums, V, SUB, SUBS, SPLITS, SPLITS_PAD, SUMS_PAD, CUT)
            best, top = _with_part(best, part, best_of, PARTS, SIZE), _with_part(top, part, top_of, PARTS, SIZE)
            total, drawn = _with_part(total, part, total_of, PARTS, SIZE), _with_part(drawn, part, drawn_of, PARTS, SIZE)
    return best, top, total, drawn


@jit
def _decide_tile(
    logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, floors, ties, seeds,
    maxima, tops, sums, lengths, finished, group, B, V, draft_stride_b, draft_stride_k, lse_stride_b, lse_stride_k,
    K: tl.constexpr, ROWS: tl.constexpr, R_PAD: tl.constexpr, PARTS: tl.constexpr, SUB: tl.constexpr, SUBS: tl.constexpr,
    SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr, SUMS_PAD: tl.constexpr, CHUNK: tl.constexpr, CHUNKS_PAD: tl.constexpr,
    DENSE: tl.constexpr, CUT: tl.constexpr, TREE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The token after every row of the target, and whether the draft after it stands, [ROWS, R_PAD]; group int64."""
    R: tl.constexpr = K + 1
    b = group * ROWS + tl.arange(0, ROWS)
    # ROWS x R_PAD rows of the target, one after the other
    j = tl.arange(0, ROWS * R_PAD)
    jb, jr = group * ROWS + j // R_PAD, (j % R_PAD).to(tl.int64)
    jinside = jb < B
    proposed = tl.load(draft_lengths + jb, mask=jinside, other=-1)
    jread = jinside & (jr <= proposed) & (tl.load(finished + jb, mask=jinside, other=1) == 0)
    jrow = jb * R + jr
    t = tl.load(temperature + jb, mask=jinside, other=1.0)
    rate = 1.0 / tl.where(t > 0, t, 1.0)
    floor, tie = rate, jr
    if CUT:
        floor = tl.load(floors + jrow, mask=jread, other=0.0)
        tie = tl.load(ties + jrow, mask=jread, other=0).to(tl.int64)

    seed = tl.load(seeds + jb, mask=jinside, other=0)
    start = tl.load(lengths + jb, mask=jinside, other=0)
    depth = jr
    if TREE:
        in_tree = group * ROWS + tl.arange(0, ROWS)
        depth = tl.reshape(depths(parents, in_tree, in_tree < B, K, R_PAD), (ROWS * R_PAD,))
    stream, position, offset = jr * 0 + _POINT, start + depth, jr * 0
    is_dense = jread & False
    if DENSE:
        is_dense = jread & (tl.load(dense + jb, mask=jinside, other=0) != 0) & (t > 0)
        stream = tl.where(is_dense, _RESIDUAL, stream)
        position, offset = tl.where(is_dense, start, position), tl.where(is_dense, jr, offset)
    uniform = uniform_tile(seed, stream, position, offset)

    best, top, total, drawn = _combine_rows(logits, jrow, jread, rate, uniform, floor, tie, maxima, tops, sums, V, PARTS,
                                            ROWS * R_PAD // PARTS, SUB, SUBS, SPLITS, SPLITS_PAD, SUMS_PAD, CUT)
    token = tl.where(t > 0, drawn, top).to(tl.int64)

    tested = jread & (jr < proposed)
    draft = tl.load(draft_tokens + jb * K + jr, mask=tested, other=0)
    stands = tested & (draft == token)
    if DENSE:
        px = tl.load(logits + jrow * V + draft, mask=tested & is_dense, other=float("-inf")).to(tl.float32)
        if CUT:
            px = within(px, draft, floor, tie)
        p = tl.exp((px - best) * rate).to(tl.float64) / total
        at = jb * draft_stride_b + jr * draft_stride_k
        qx = tl.load(draft_logits + at + draft, mask=tested & is_dense, other=0.0).to(tl.float64)
        lse = tl.load(draft_lse + jb * lse_stride_b + jr * lse_stride_k, mask=tested & is_dense, other=0.0)
        coin = uniform_tile(seed, jr * 0 + _ACCEPT, start, jr)
        stands = tl.where(is_dense, tested & (coin * tl.exp(qx - lse) <= p), stands)
        n = tl.arange(0, R_PAD)[None, :]
        bests, rates, totals, lses = (tl.reshape(best, (ROWS, R_PAD)), tl.reshape(rate, (ROWS, R_PAD)),
                                      tl.reshape(total, (ROWS, R_PAD)), tl.reshape(lse, (ROWS, R_PAD)))
        floors_at, ties_at = tl.reshape(floor, (ROWS, R_PAD)), tl.reshape(tie, (ROWS, R_PAD))
        weighed = is_dense & tested
        masses = tl.zeros((ROWS, CHUNKS_PAD), tl.float64)
        whole = tl.full((ROWS, R_PAD), 1.0, tl.float64)
        if BLOCK:
            last = tl.sum(tl.reshape(weighed.to(tl.int64), (ROWS, R_PAD)), axis=1)
            length = last
            # P_i of block.py
            ratio = tl.reshape(tl.where(weighed, p / tl.exp(qx - lse), 1.0), (ROWS, R_PAD))
            so_far = tl.full((ROWS,), 1.0, tl.float64)
            for i in range(K):
                so_far = tl.minimum(so_far * tl.sum(tl.where(n == i, ratio, 0.0), axis=1), 1.0)
                whole = tl.where(n == i + 1, so_far[:, None], whole)
            coins = tl.reshape(tl.where(weighed, coin, 1.0), (ROWS, R_PAD))
            u = tl.sum(tl.where(n == length[:, None] - 1, coins, 0.0), axis=1)
            undecided = (length > 0) & (u > tl.sum(tl.where(n == length[:, None], whole, 0.0), axis=1))
            for step in range(K):
                # from the longest down: the first to stand is the one
                i = K - 1 - step
                active = undecided & (i < length)
                if tl.max(active.to(tl.int32), axis=0) > 0:
                    here = (n == i) & active[:, None]
                    part = tl.sum(tl.where(here, whole, 0.0), axis=1)
                    found = _residual_masses(
                        logits, draft_logits, b * R + i, b * draft_stride_b + i * draft_stride_k,
                        tl.sum(tl.where(here, bests, 0.0), axis=1), tl.sum(tl.where(here, rates, 0.0), axis=1),
                        (part / tl.where(active, tl.sum(tl.where(here, totals, 0.0), axis=1), 1.0)).to(tl.float32),
                        tl.sum(tl.where(here, lses, 0.0), axis=1).to(tl.float32), active,
                        tl.sum(tl.where(here, floors_at, 0.0), axis=1), tl.sum(tl.where(here, ties_at, 0), axis=1), V,
                        CHUNK, CHUNKS_PAD, CUT)
                    mass = tl.sum(found, axis=1)
                    u = tl.sum(tl.where(n == i - 1, coins, 0.0), axis=1)
                    stop = active & ((i == 0) | (u * (mass + 1.0 - part) <= mass))
                    masses = tl.where(stop[:, None], found, masses)
                    last = tl.where(stop, i, last)
                    undecided = undecided & (stop == 0)
            rejected = last < length
            standing = tl.reshape(n + tl.zeros((ROWS, R_PAD), tl.int32) < last[:, None], (ROWS * R_PAD,))
            stands = tl.where(is_dense, standing, stands)
        else:
            # the first draft that falls, if one does
            fallen = tl.reshape((weighed & (stands == 0)).to(tl.int32), (ROWS, R_PAD))
            last = tl.min(tl.where(fallen != 0, n, R_PAD), axis=1).to(tl.int64)
            rejected = last < R_PAD
        if tl.max(rejected.to(tl.int32), axis=0) > 0:
            here = n == last[:, None]
            row, draft_row = b * R + last, b * draft_stride_b + last * draft_stride_k
            best_at, rate_at = tl.sum(tl.where(here, bests, 0.0), axis=1), tl.sum(tl.where(here, rates, 0.0), axis=1)
            total_at = tl.where(rejected, tl.sum(tl.where(here, totals, 0.0), axis=1), 1.0)
            scale_at = (tl.sum(tl.where(here, whole, 0.0), axis=1) / total_at).to(tl.float32)
            lse_at = tl.sum(tl.where(here, lses, 0.0), axis=1).to(tl.float32)
            uniform_at = tl.sum(tl.where(here, tl.reshape(uniform, (ROWS, R_PAD)), 0.0), axis=1)
            floor_at, tie_at = tl.sum(tl.where(here, floors_at, 0.0), axis=1), tl.sum(tl.where(here, ties_at, 0), axis=1)
            if BLOCK == 0:
                masses = _residual_masses(logits, draft_logits, row, draft_row, best_at, rate_at, scale_at, lse_at, rejected,
                                          floor_at, tie_at, V, CHUNK, CHUNKS_PAD, CUT)
            residual = _residual_token(logits, draft_logits, row, draft_row, best_at, rate_at, scale_at, lse_at, masses,
                                       uniform_at, rejected, floor_at, tie_at, V, CHUNK, CHUNKS_PAD, CUT)
            replaced = tl.reshape(here & (rejected & (tl.sum(masses, axis=1) > 0))[:, None], (ROWS * R_PAD,))
            spread = tl.reshape(residual[:, None] + tl.zeros((ROWS, R_PAD), tl.int64), (ROWS * R_PAD,))
            token = tl.where(replaced, spread, token)
        token = tl.where(is_dense & stands, draft, token)
    return tl.reshape(token, (ROWS, R_PAD)), tl.reshape(stands.to(tl.int32), (ROWS, R_PAD)) != 0


@jit
def _accept_kernel(
    logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, floors, ties, seeds,
    maxima, tops, sums, tickets, verified_tokens, verified_counts, path,
    draft_proposers, produced, limits, end_token, tokens, proposer, lengths, finished, hidden, rounds, covered, drafted,
    tested_at, accepted_at, last_counts, last_tested, last_accepted,
    B, V, T1, C, draft_stride_b, draft_stride_k, lse_stride_b, lse_stride_k,
    K: tl.constexpr, ROWS: tl.constexpr, R_PAD: tl.constexpr, PARTS: tl.constexpr, SUB: tl.constexpr, SUBS: tl.constexpr,
    SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr, SUMS_PAD: tl.constexpr, CHUNK: tl.constexpr, CHUNKS_PAD: tl.constexpr,
    C_TILE: tl.constexpr, DENSE: tl.constexpr, CUT: tl.constexpr, TREE: tl.constexpr, COMMIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    R: tl.constexpr = K + 1
    program = tl.program_id(0)
    split = program % SPLITS
    r = (program // SPLITS) % R
    group = program // (SPLITS * R)
    b = group.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = b < B
    live = inside & (tl.load(finished + b, mask=inside, other=1) == 0)
    read = live & (r <= tl.load(draft_lengths + b, mask=inside, other=-1))
    t = tl.load(temperature + b, mask=inside, other=1.0)
    rate = 1.0 / tl.where(t > 0, t, 1.0)
    split_tile(logits, b * R + r, read, rate, split, floors, ties, maxima, tops, sums, V, SUB, SUBS, SPLITS, CUT)
    # all of this program's threads have written before its ticket says so
    tl.debug_barrier()
    if tl.atomic_add(tickets + group, 1, sem="acq_rel") == SPLITS * R - 1:
        tl.store(tickets + group, 0)
        token, stands = _decide_tile(
            logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, floors, ties, seeds,
            maxima, tops, sums, lengths, finished, group.to(tl.int64), B, V, draft_stride_b, draft_stride_k, lse_stride_b,
            lse_stride_k, K, ROWS, R_PAD, PARTS, SUB, SUBS, SPLITS, SPLITS_PAD, SUMS_PAD, CHUNK, CHUNKS_PAD,
            DENSE, CUT, TREE, BLOCK)
        proposed = tl.load(draft_lengths + b, mask=inside, other=0)
        emitted, walked, following, accepted = walk_tile(
            token, stands, draft_tokens, parents, b, inside, proposed, K, R_PAD, TREE)
        finish_tile(emitted, walked, following, accepted, b, inside, verified_tokens, verified_counts, path, draft_lengths,
                    draft_proposers, produced, limits, end_token, tokens, proposer, lengths, finished, hidden, rounds, covered,
                    drafted, tested_at, accepted_at, last_counts, last_tested, last_accepted, T1, C, K, R_PAD, C_TILE,
                    COMMIT)


@jit
def _greedy_kernel(
    chosen, draft_tokens, draft_lengths, parents, verified_tokens, verified_counts, path,
    draft_proposers, produced, limits, end_token, tokens, proposer, lengths, finished, hidden, rounds, covered, drafted,
    tested_at, accepted_at, last_counts, last_tested, last_accepted, B, T1, C,
    K: tl.constexpr, ROWS: tl.constexpr, R_PAD: tl.constexpr, C_TILE: tl.constexpr, TREE: tl.constexpr,
    COMMIT: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = b < B
    n = tl.arange(0, R_PAD)[None, :]
    proposed = tl.load(draft_lengths + b, mask=inside, other=0)
    token = tl.load(chosen + b[:, None] * (K + 1) + n, mask=inside[:, None] & (n <= proposed[:, None]), other=0)
    tested = inside[:, None] & (n < proposed[:, None])
    stands = tested & (tl.load(draft_tokens + b[:, None] * K + n, mask=tested, other=0) == token)
    emitted, walked, following, accepted = walk_tile(token, stands, draft_tokens, parents, b, inside, proposed, K, R_PAD,
                                                     TREE)
    finish_tile(emitted, walked, following, accepted, b, inside, verified_tokens, verified_counts, path, draft_lengths,
                draft_proposers, produced, limits, end_token, tokens, proposer, lengths, finished, hidden, rounds, covered,
                drafted, tested_at, accepted_at, last_counts, last_tested, last_accepted, T1, C, K, R_PAD, C_TILE, COMMIT)


class Rows(NamedTuple):
    """What a verification is committed into: commit.py's tensors from draft_proposers on, in its order."""

    draft_proposers: Tensor
    produced: Tensor
    limits: Tensor
    end_token: int
    tokens: Tensor
    proposer: Tensor
    lengths: Tensor
    finished: Tensor
    hidden: Tensor
    rounds: Tensor
    covered: Tensor
    drafted: Tensor
    tested_at: Tensor
    accepted_at: Tensor
    last_counts: Tensor
    last_tested: Tensor
    last_accepted: Tensor


def accept_sampled_triton(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, floors, ties,
                   seeds, rows: Rows, verified_tokens, verified_counts, path, scratch: Scratch, commit: bool,
                   block: bool = False) -> None:
    """parents, draft_logits, draft_lse, floors, ties may be None: a chain, no dense rows, no cut. One launch, no wait.

    Without `commit` rows are read (lengths, finished) and nothing in them is written. `block`: block.py's rule for dense
    rows of chains."""
    B, R, V = logits.shape
    sizes = split_sizes(V)
    split = sizes["SUB"] * sizes["SUBS"]
    tile, C, chunk = tile_rows(B, R * split), rows.hidden.shape[1], min(CHUNK, split)
    strides = (0, 0, 0, 0) if draft_logits is None else (*draft_logits.stride()[:2], *draft_lse.stride())
    _accept_kernel[(-(-B // tile) * R * sizes["SPLITS"],)](
        logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, floors, ties, seeds,
        *scratch, verified_tokens, verified_counts, path, *rows, B, V, rows.tokens.shape[1], C, *strides,
        K=R - 1, ROWS=tile, R_PAD=power_of_2(R), PARTS=max(1, power_of_2(R) // TOGETHER), **sizes, CHUNK=chunk,
        CHUNKS_PAD=power_of_2(-(-V // chunk)), C_TILE=min(1024, power_of_2(C)), DENSE=draft_logits is not None,
        CUT=floors is not None, TREE=parents is not None, COMMIT=commit,
        BLOCK=block and draft_logits is not None and parents is None, num_warps=8)


def accept_greedy_triton(chosen, draft_tokens, draft_lengths, parents, rows: Rows, verified_tokens, verified_counts, path,
                          commit: bool) -> None:
    """chosen [B, R] int64 is the argmax of rows that were read."""
    (B, R), C = chosen.shape, rows.hidden.shape[1]
    tile = tile_rows(B, R)
    _greedy_kernel[(-(-B // tile),)](
        chosen, draft_tokens, draft_lengths, parents, verified_tokens, verified_counts, path, *rows, B, rows.tokens.shape[1],
        C, K=R - 1, ROWS=tile, R_PAD=power_of_2(R), C_TILE=min(1024, power_of_2(C)), TREE=parents is not None,
        COMMIT=commit, num_warps=4)
