"""Commit verifications: append what each row emits, cut at the end token and at the row's limit, and count.

    read     verified_tokens [B, R], verified_counts [B], path [B, R] int64    as accept.py writes them; a chain's path is
                                                                              0, 1, 2, ...
             draft_lengths [B], parents [B, K] int64, draft_proposers [B, K] uint8     the draft that was verified; a chain's
                                                                              parents are 0, 1, 2, ...
             produced [B, R, C] float32                                       the target's output of this round
             limits [B] int64, end_token int
    written  tokens [B, T + 1] int64, proposer [B, T + 1] uint8, lengths [B] int64, finished [B] bool, hidden [B, C] float32
             rounds, covered, drafted [B], tested_at, accepted_at [B, K] int64                      sums
             last_counts, last_tested, last_accepted [B] int64                                      of this round

Finished rows emit and count nothing. A draft counts as tested up to the first rejection and never past what was emitted;
of a tree each depth counts once, the last one where drafts followed the row that was reached and none of them stood.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import jit, njit, power_of_2, tile_rows, tl


def commit_reference(verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, produced, limits,
                     end_token, tokens, proposer, lengths, finished, hidden, rounds, covered, drafted, tested_at,
                     accepted_at, last_counts, last_tested, last_accepted) -> None:
    for b in range(len(lengths)):
        last_counts[b] = last_tested[b] = last_accepted[b] = 0
        if finished[b]:
            continue
        emitted = verified_tokens[b, : min(verified_counts[b], limits[b] - lengths[b])].tolist()
        if end_token in emitted:
            emitted = emitted[: emitted.index(end_token) + 1]
        n, drafts = len(emitted), int(verified_counts[b]) - 1
        proposers = [draft_proposers[b, path[b, i + 1] - 1] if i < drafts else 0 for i in range(n)]
        tokens[b, lengths[b] : lengths[b] + n] = emitted
        proposer[b, lengths[b] : lengths[b] + n] = proposers
        hidden[b] = produced[b, path[b, n - 1]]
        last_counts[b], last_accepted[b] = n, min(drafts, n)
        goes_on = (parents[b, : draft_lengths[b]] == path[b, drafts]).any()
        last_tested[b] = min(drafts + goes_on, n)
        tested_at[b, : last_tested[b]] += 1
        accepted_at[b, : last_accepted[b]] += 1
        rounds[b] += 1
        covered[b] += draft_lengths[b] > 0
        drafted[b] += draft_lengths[b]
        lengths[b] += n
        finished[b] = emitted[-1] == end_token or lengths[b] >= limits[b]


@njit()
def _commit_loop(verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, produced, limits, end_token,
                 tokens, proposer, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at, last_counts,
                 last_tested, last_accepted):
    for b in range(lengths.shape[0]):
        last_counts[b] = last_tested[b] = last_accepted[b] = 0
        if finished[b]:
            continue
        drafts = verified_counts[b] - 1
        most = min(verified_counts[b], limits[b] - lengths[b])
        n = 0
        ended = False
        while n < most and not ended:
            token = verified_tokens[b, n]
            tokens[b, lengths[b] + n] = token
            proposer[b, lengths[b] + n] = draft_proposers[b, path[b, n + 1] - 1] if n < drafts else np.uint8(0)
            ended = token == end_token
            n += 1
        hidden[b] = produced[b, path[b, n - 1]]
        last_counts[b], last_accepted[b] = n, min(drafts, n)
        tested = drafts
        for i in range(draft_lengths[b]):
            if parents[b, i] == path[b, drafts]:
                tested = drafts + 1
        last_tested[b] = min(tested, n)
        for i in range(last_tested[b]):
            tested_at[b, i] += 1
        for i in range(last_accepted[b]):
            accepted_at[b, i] += 1
        rounds[b] += 1
        covered[b] += 1 if draft_lengths[b] > 0 else 0
        drafted[b] += draft_lengths[b]
        lengths[b] += n
        finished[b] = ended or lengths[b] >= limits[b]


def commit_numba(verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, produced, limits, end_token,
                 tokens, proposer, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at, last_counts,
                 last_tested, last_accepted) -> None:
    _commit_loop(verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, produced, limits, end_token,
                 tokens, proposer, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at, last_counts,
                 last_tested, last_accepted)


@jit
def commit_tile(b, inside, emitted, walked, following, drafts, reached, draft_lengths, draft_proposers, produced, limits,
                end_token, tokens, proposer, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at,
                last_counts, last_tested, last_accepted, T1, C, K: tl.constexpr, R_PAD: tl.constexpr, C_TILE: tl.constexpr):
    """Rows b [N] of a batch, those `inside` it: emitted, walked and following [N, R_PAD] are the ids, the rows they came
    from and the rows after those; drafts [N] of the ids were drafted, one more follows; reached [N] drafts were tested, were
    it not for ends. Also called by verification.py."""
    n = tl.arange(0, R_PAD)[None, :]
    length = tl.load(lengths + b, mask=inside, other=0)
    limit = tl.load(limits + b, mask=inside, other=0)
    proposed = tl.load(draft_lengths + b, mask=inside, other=0)
    live = inside & (tl.load(finished + b, mask=inside, other=1) == 0)
    # others of this program read what is overwritten below
    tl.debug_barrier()
    most = tl.minimum(drafts + 1, limit - length)
    end = tl.min(tl.where((emitted == end_token) & (n < most[:, None]), n, R_PAD), axis=1)
    count = tl.where(live, tl.minimum(most, end + 1), 0)
    written = n < count[:, None]
    place = b[:, None] * T1 + length[:, None] + n
    by_draft = written & (n < drafts[:, None])
    proposer = tl.load(draft_proposers + b[:, None] * K + following - 1, mask=by_draft, other=0)
    tl.store(tokens + place, emitted, mask=written)
    tl.store(proposer + place, proposer, mask=written)
    row = tl.sum(tl.where(n == count[:, None] - 1, walked, 0), axis=1)
    for first in range(0, C, C_TILE):
        c = first + tl.arange(0, C_TILE)[None, :]
        taken = live[:, None] & (c < C)
        state = tl.load(produced + (b * (K + 1) + row)[:, None] * C + c, mask=taken, other=0.0)
        tl.store(hidden + b[:, None] * C + c, state.to(tl.float32), mask=taken)
    tested, accepted = tl.minimum(reached, count), tl.minimum(drafts, count)
    tested, accepted = tl.where(live, tested, 0), tl.where(live, accepted, 0)
    counted = live[:, None] & (n < K)
    for_each = b[:, None] * K + n
    before = tl.load(tested_at + for_each, mask=counted, other=0)
    tl.store(tested_at + for_each, before + (n < tested[:, None]), mask=counted)
    before = tl.load(accepted_at + for_each, mask=counted, other=0)
    tl.store(accepted_at + for_each, before + (n < accepted[:, None]), mask=counted)
    tl.store(last_counts + b, count, mask=inside)
    tl.store(last_tested + b, tested, mask=inside)
    tl.store(last_accepted + b, accepted, mask=inside)
    tl.store(rounds + b, tl.load(rounds + b, mask=live, other=0) + 1, mask=live)
    tl.store(covered + b, tl.load(covered + b, mask=live, other=0) + (proposed > 0), mask=live)
    tl.store(drafted + b, tl.load(drafted + b, mask=live, other=0) + proposed, mask=live)
    tl.store(lengths + b, length + count, mask=live)
    tl.store(finished + b, (end < most) | (length + count >= limit), mask=live)


@jit
def _commit_kernel(verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, produced, limits, end_token,
                   tokens, proposer, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at,
                   last_counts, last_tested, last_accepted, B, T1, C, K: tl.constexpr, ROWS: tl.constexpr,
                   R_PAD: tl.constexpr, C_TILE: tl.constexpr, TREE: tl.constexpr):
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = b < B
    drafts = tl.load(verified_counts + b, mask=inside, other=1) - 1
    n = tl.arange(0, R_PAD)[None, :]
    place = b[:, None] * (K + 1) + n
    emitted = tl.load(verified_tokens + place, mask=inside[:, None] & (n <= drafts[:, None]), other=0)
    walked = tl.load(path + place, mask=inside[:, None] & (n <= drafts[:, None]), other=0)
    following = tl.load(path + place + 1, mask=inside[:, None] & (n < drafts[:, None]), other=0)
    proposed = tl.load(draft_lengths + b, mask=inside, other=0)
    reached = tl.minimum(proposed, drafts + 1)
    if TREE:
        last = tl.load(path + b * (K + 1) + drafts, mask=inside, other=0)
        above = tl.load(parents + b[:, None] * K + n, mask=inside[:, None] & (n < proposed[:, None]), other=-1)
        reached = drafts + tl.max((above == last[:, None]).to(tl.int64), axis=1)
    commit_tile(b, inside, emitted, walked, following, drafts, reached, draft_lengths, draft_proposers, produced, limits,
                end_token, tokens, proposer, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at,
                last_counts, last_tested, last_accepted, T1, C, K, R_PAD, C_TILE)


def commit_triton(verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, produced, limits, end_token,
                  tokens, proposer, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at, last_counts,
                  last_tested, last_accepted) -> None:
    """On torch tensors of one device; parents may be None, a chain, and produced bfloat16. One launch, no wait."""
    (B, R), C = verified_tokens.shape, hidden.shape[1]
    rows = tile_rows(B, R)
    _commit_kernel[(-(-B // rows),)](
        verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, produced, limits, end_token, tokens,
        proposer, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at, last_counts, last_tested,
        last_accepted, B, tokens.shape[1], C, K=R - 1, ROWS=rows, R_PAD=power_of_2(R), C_TILE=min(1024, power_of_2(C)),
        TREE=parents is not None, num_warps=4)


COMMIT = {"reference": commit_reference, "numba": commit_numba, "triton": commit_triton}
