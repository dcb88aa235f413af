"""commit.py in Triton; its contract holds, except that `parents` may be None and `target_hidden` may be bfloat16."""

from __future__ import annotations

from foredraft.kernels.core.backend_triton import constexpr, jit, power_of_2, sequences_per_program, tl
from foredraft.kernels.step.end_tokens import MAX_END_TOKENS

END_TOKENS = constexpr(MAX_END_TOKENS)


@jit
def commit_sequences(b, inside, emitted, visited, following, accepted, reached, draft_lengths, draft_proposers,
                     target_hidden, limits, end_tokens, tokens, proposer, lengths, finished, hidden, num_steps, covered,
                     drafted, tested_at, accepted_at, last_counts, last_tested, last_accepted, T1, C, K: tl.constexpr,
                     R_PAD: tl.constexpr, C_TILE: tl.constexpr):
    """Commit sequences b [N] where `inside`; verify/accept_triton.py calls it too.

    emitted, visited, following [N, R_PAD]: verified tokens, the query positions they come from, the positions after those.
    accepted [N]: how many of the tokens were drafted. reached [N]: how many drafts were tested if no sequence ends.
    """
    n = tl.arange(0, R_PAD)[None, :]
    length = tl.load(lengths + b, mask=inside, other=0)
    limit = tl.load(limits + b, mask=inside, other=0)
    proposed = tl.load(draft_lengths + b, mask=inside, other=0)
    live = inside & (tl.load(finished + b, mask=inside, other=1) == 0)
    # all threads have loaded before any thread overwrites
    tl.debug_barrier()
    most = tl.minimum(accepted + 1, limit - length)
    is_end = tl.zeros(emitted.shape, tl.int1)
    for i in tl.static_range(END_TOKENS):
        is_end = is_end | (emitted == tl.load(end_tokens + b * END_TOKENS + i, mask=inside, other=-1)[:, None])
    end = tl.min(tl.where(is_end & (n < most[:, None]), n, R_PAD), axis=1)
    count = tl.where(live, tl.minimum(most, end + 1), 0)
    written = n < count[:, None]
    position = b[:, None] * T1 + length[:, None] + n
    is_drafted = written & (n < accepted[:, None])
    by = tl.load(draft_proposers + b[:, None] * K + following - 1, mask=is_drafted, other=0)
    tl.store(tokens + position, emitted, mask=written)
    tl.store(proposer + position, by, mask=written)
    last = tl.sum(tl.where(n == count[:, None] - 1, visited, 0), axis=1)
    for first in range(0, C, C_TILE):
        c = first + tl.arange(0, C_TILE)[None, :]
        is_copied = live[:, None] & (c < C)
        state = tl.load(target_hidden + (b * (K + 1) + last)[:, None] * C + c, mask=is_copied, other=0.0)
        tl.store(hidden + b[:, None] * C + c, state.to(tl.float32), mask=is_copied)
    num_tested, num_accepted = tl.minimum(reached, count), tl.minimum(accepted, count)
    num_tested, num_accepted = tl.where(live, num_tested, 0), tl.where(live, num_accepted, 0)
    counted = live[:, None] & (n < K)
    offset = b[:, None] * K + n
    before = tl.load(tested_at + offset, mask=counted, other=0)
    tl.store(tested_at + offset, before + (n < num_tested[:, None]), mask=counted)
    before = tl.load(accepted_at + offset, mask=counted, other=0)
    tl.store(accepted_at + offset, before + (n < num_accepted[:, None]), mask=counted)
    tl.store(last_counts + b, count, mask=inside)
    tl.store(last_tested + b, num_tested, mask=inside)
    tl.store(last_accepted + b, num_accepted, mask=inside)
    tl.store(num_steps + b, tl.load(num_steps + b, mask=live, other=0) + 1, mask=live)
    tl.store(covered + b, tl.load(covered + b, mask=live, other=0) + (proposed > 0), mask=live)
    tl.store(drafted + b, tl.load(drafted + b, mask=live, other=0) + proposed, mask=live)
    tl.store(lengths + b, length + count, mask=live)
    tl.store(finished + b, (end < most) | (length + count >= limit), mask=live)


@jit(do_not_specialize=["B", "T1"])
def _commit_kernel(verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, target_hidden, limits,
                   end_tokens, tokens, proposer, lengths, finished, hidden, num_steps, covered, drafted, tested_at,
                   accepted_at, last_counts, last_tested, last_accepted, B, T1, C, K: tl.constexpr, TILE_B: tl.constexpr,
                   R_PAD: tl.constexpr, C_TILE: tl.constexpr, TREE: tl.constexpr):
    b = tl.program_id(0).to(tl.int64) * TILE_B + tl.arange(0, TILE_B)
    inside = b < B
    accepted = tl.load(verified_counts + b, mask=inside, other=1) - 1
    n = tl.arange(0, R_PAD)[None, :]
    at = b[:, None] * (K + 1) + n
    emitted = tl.load(verified_tokens + at, mask=inside[:, None] & (n <= accepted[:, None]), other=0)
    visited = tl.load(path + at, mask=inside[:, None] & (n <= accepted[:, None]), other=0)
    following = tl.load(path + at + 1, mask=inside[:, None] & (n < accepted[:, None]), other=0)
    proposed = tl.load(draft_lengths + b, mask=inside, other=0)
    reached = tl.minimum(proposed, accepted + 1)
    if TREE:
        last = tl.load(path + b * (K + 1) + accepted, mask=inside, other=0)
        parent = tl.load(parents + b[:, None] * K + n, mask=inside[:, None] & (n < proposed[:, None]), other=-1)
        reached = accepted + tl.max((parent == last[:, None]).to(tl.int64), axis=1)
    commit_sequences(b, inside, emitted, visited, following, accepted, reached, draft_lengths, draft_proposers,
                     target_hidden, limits, end_tokens, tokens, proposer, lengths, finished, hidden, num_steps, covered,
                     drafted, tested_at, accepted_at, last_counts, last_tested, last_accepted, T1, C, K, R_PAD, C_TILE)


def commit_triton(verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, target_hidden, limits,
                  end_tokens, tokens, proposer, lengths, finished, hidden, num_steps, covered, drafted, tested_at,
                  accepted_at, last_counts, last_tested, last_accepted) -> None:
    """One launch, without synchronisation. `parents` None: a draft without branches."""
    (B, R), C = verified_tokens.shape, hidden.shape[1]
    tile = sequences_per_program(B, R)
    _commit_kernel[(-(-B // tile),)](
        verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, target_hidden, limits, end_tokens,
        tokens, proposer, lengths, finished, hidden, num_steps, covered, drafted, tested_at, accepted_at, last_counts,
        last_tested, last_accepted, B, tokens.shape[1], C, K=R - 1, TILE_B=tile, R_PAD=power_of_2(R),
        C_TILE=min(1024, power_of_2(C)), TREE=parents is not None, num_warps=4)
