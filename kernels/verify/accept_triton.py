"""accept.py and block.py in Triton: one launch verifies a batch and commits it (step/commit.py).

A program of _accept_kernel reads one split of the vocabulary for one query position of TILE_B sequences (grid: batch x R x
splits; core/split_softmax_triton.py). The last program of these sequences, by an atomic ticket, samples at all R positions,
finds the accepted drafts, and commits. A rejected dense draft takes one more pass over that position's p and q. Block
verification takes such a pass for each length that it tests, from the longest down to the accepted one.

    logits        [B, R, V] float32 or bfloat16, contiguous; positions beyond a draft and finished sequences are not read
    draft_logits  [B, K, V] float32 of any strides over the first two axes, draft_lse [B, K] float64; None: no dense drafts
    floors, ties  [B, R] float32, int32 as sampling/top_k_top_p_triton.py writes them; None without top-k and top-p
    the rest      as in accept.py and step/commit.py; `lengths` are accept.py's starts
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from foredraft.kernels.core.backend_triton import jit, power_of_2, sequences_per_program, tl
from foredraft.kernels.core.split_softmax_triton import Scratch, split_sizes, split_softmax
from foredraft.kernels.step.commit_triton import commit_sequences
from foredraft.kernels.verify.decide_triton import decide

# Tokens of a residual that are read together; query positions sampled together: more would not stay in registers.
CHUNK, POSITIONS = 1024, 16


@jit
def walk_draft(tokens, is_accepted, draft_tokens, parents, b, inside, proposed, K: tl.constexpr, R_PAD: tl.constexpr,
               TREE: tl.constexpr):
    """The accepted path. tokens [N, R_PAD]: the target's token after each query position; is_accepted [N, R_PAD]: without
    branches, whether the draft after it is accepted.

    Returns emitted, visited, following [N, R_PAD]: emitted tokens, the query positions they come from, the positions after
    those; accepted [N]: the number of accepted drafts.
    """
    row = tl.arange(0, R_PAD)[None, :].to(tl.int64)
    if TREE:
        emitted, visited, following = tokens * 0, tokens * 0, tokens * 0
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
            visited = tl.where(now, at[:, None], visited)
            active = active & (child <= R_PAD)
            following = tl.where(now & active[:, None], child[:, None], following)
            accepted += active.to(tl.int64)
            at = tl.where(active, child, at)
    else:
        accepted = tl.min(tl.where(is_accepted, R_PAD, row), axis=1)
        emitted, visited = tokens, row + tokens * 0
        following = visited + 1
    return emitted, visited, following, accepted


@jit
def write_verification(emitted, visited, following, accepted, b, inside, verified_tokens, verified_counts, path,
                       draft_lengths, draft_proposers, target_hidden, limits, end_tokens, tokens, proposer, lengths,
                       finished, hidden, num_steps, covered, drafted, tested_at, accepted_at, last_counts, last_tested,
                       last_accepted, T1, C, K: tl.constexpr, R_PAD: tl.constexpr, C_TILE: tl.constexpr,
                       COMMIT: tl.constexpr):
    """Write tokens, path and counts; then commit them (COMMIT)."""
    n = tl.arange(0, R_PAD)[None, :]
    written = inside[:, None] & (n <= accepted[:, None])
    at = b[:, None] * (K + 1) + n
    tl.store(verified_tokens + at, emitted, mask=written)
    tl.store(path + at, visited, mask=written)
    tl.store(verified_counts + b, accepted + 1, mask=inside)
    if COMMIT:
        reached = tl.minimum(tl.load(draft_lengths + b, mask=inside, other=0), accepted + 1)
        commit_sequences(b, inside, emitted, visited, following, accepted, reached, draft_lengths, draft_proposers,
                         target_hidden, limits, end_tokens, tokens, proposer, lengths, finished, hidden, num_steps, covered,
                         drafted, tested_at, accepted_at, last_counts, last_tested, last_accepted, T1, C, K, R_PAD, C_TILE)


@jit(do_not_specialize=["B", "T1", "lse_stride_b", "lse_stride_k"])
def _accept_kernel(
    logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, floors, ties, seeds,
    maxima, argmaxes, sums, tickets, verified_tokens, verified_counts, path,
    draft_proposers, target_hidden, limits, end_tokens, tokens, proposer, lengths, finished, hidden, num_steps, covered,
    drafted, tested_at, accepted_at, last_counts, last_tested, last_accepted,
    B, V, T1, C, draft_stride_b, draft_stride_k, lse_stride_b, lse_stride_k,
    K: tl.constexpr, TILE_B: tl.constexpr, R_PAD: tl.constexpr, PARTS: tl.constexpr, SUB: tl.constexpr, SUBS: tl.constexpr,
    SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr, SUMS_PAD: tl.constexpr, CHUNK: tl.constexpr, CHUNKS_PAD: tl.constexpr,
    C_TILE: tl.constexpr, DENSE: tl.constexpr, FILTERED: tl.constexpr, TREE: tl.constexpr, COMMIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    R: tl.constexpr = K + 1
    program = tl.program_id(0)
    split = program % SPLITS
    r = (program // SPLITS) % R
    group = program // (SPLITS * R)
    b = group.to(tl.int64) * TILE_B + tl.arange(0, TILE_B)
    inside = b < B
    live = inside & (tl.load(finished + b, mask=inside, other=1) == 0)
    read = live & (r <= tl.load(draft_lengths + b, mask=inside, other=-1))
    t = tl.load(temperature + b, mask=inside, other=1.0)
    rate = 1.0 / tl.where(t > 0, t, 1.0)
    split_softmax(logits, b * R + r, read, rate, split, floors, ties, maxima, argmaxes, sums, V, SUB, SUBS, SPLITS, FILTERED)
    # all threads of the program have written before it takes its ticket
    tl.debug_barrier()
    if tl.atomic_add(tickets + group, 1, sem="acq_rel") == SPLITS * R - 1:
        tl.store(tickets + group, 0)
        token, is_accepted = decide(
            logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, floors, ties, seeds,
            maxima, argmaxes, sums, lengths, finished, group.to(tl.int64), B, V, draft_stride_b, draft_stride_k,
            lse_stride_b, lse_stride_k, K, TILE_B, R_PAD, PARTS, SUB, SUBS, SPLITS, SPLITS_PAD, SUMS_PAD, CHUNK, CHUNKS_PAD,
            DENSE, FILTERED, TREE, BLOCK)
        proposed = tl.load(draft_lengths + b, mask=inside, other=0)
        emitted, visited, following, accepted = walk_draft(
            token, is_accepted, draft_tokens, parents, b, inside, proposed, K, R_PAD, TREE)
        write_verification(emitted, visited, following, accepted, b, inside, verified_tokens, verified_counts, path,
                           draft_lengths, draft_proposers, target_hidden, limits, end_tokens, tokens, proposer, lengths,
                           finished, hidden, num_steps, covered, drafted, tested_at, accepted_at, last_counts, last_tested,
                           last_accepted, T1, C, K, R_PAD, C_TILE, COMMIT)


@jit(do_not_specialize=["B", "T1"])
def _greedy_kernel(
    chosen, draft_tokens, draft_lengths, parents, verified_tokens, verified_counts, path,
    draft_proposers, target_hidden, limits, end_tokens, tokens, proposer, lengths, finished, hidden, num_steps, covered,
    drafted, tested_at, accepted_at, last_counts, last_tested, last_accepted, B, T1, C,
    K: tl.constexpr, TILE_B: tl.constexpr, R_PAD: tl.constexpr, C_TILE: tl.constexpr, TREE: tl.constexpr,
    COMMIT: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64) * TILE_B + tl.arange(0, TILE_B)
    inside = b < B
    n = tl.arange(0, R_PAD)[None, :]
    proposed = tl.load(draft_lengths + b, mask=inside, other=0)
    token = tl.load(chosen + b[:, None] * (K + 1) + n, mask=inside[:, None] & (n <= proposed[:, None]), other=0)
    tested = inside[:, None] & (n < proposed[:, None])
    is_accepted = tested & (tl.load(draft_tokens + b[:, None] * K + n, mask=tested, other=0) == token)
    emitted, visited, following, accepted = walk_draft(token, is_accepted, draft_tokens, parents, b, inside, proposed, K,
                                                       R_PAD, TREE)
    write_verification(emitted, visited, following, accepted, b, inside, verified_tokens, verified_counts, path,
                       draft_lengths, draft_proposers, target_hidden, limits, end_tokens, tokens, proposer, lengths,
                       finished, hidden, num_steps, covered, drafted, tested_at, accepted_at, last_counts, last_tested,
                       last_accepted, T1, C, K, R_PAD, C_TILE, COMMIT)


class CommitTensors(NamedTuple):
    """The arguments of step/commit.py from draft_proposers on, in its order."""

    draft_proposers: Tensor
    target_hidden: Tensor
    limits: Tensor
    end_tokens: Tensor
    tokens: Tensor
    proposer: Tensor
    lengths: Tensor
    finished: Tensor
    hidden: Tensor
    num_steps: Tensor
    covered: Tensor
    drafted: Tensor
    tested_at: Tensor
    accepted_at: Tensor
    last_counts: Tensor
    last_tested: Tensor
    last_accepted: Tensor


def accept_sampled_triton(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, floors,
                          ties, seeds, state: CommitTensors, verified_tokens, verified_counts, path, scratch: Scratch,
                          commit: bool, block: bool = False) -> None:
    """One launch, without synchronisation.

    parents None: no branches. draft_logits and draft_lse None: no dense drafts. floors and ties None: no top-k and top-p.
    commit: whether to write to `state`; its lengths and finished are read in any case. block: verify dense drafts without
    branches by block.py.
    """
    B, R, V = logits.shape
    sizes = split_sizes(V)
    split = sizes["SUB"] * sizes["SUBS"]
    tile, C, chunk = sequences_per_program(B, R * split), state.hidden.shape[1], min(CHUNK, split)
    strides = (0, 0, 0, 0) if draft_logits is None else (*draft_logits.stride()[:2], *draft_lse.stride())
    _accept_kernel[(-(-B // tile) * R * sizes["SPLITS"],)](
        logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, floors, ties, seeds,
        *scratch, verified_tokens, verified_counts, path, *state, B, V, state.tokens.shape[1], C, *strides,
        K=R - 1, TILE_B=tile, R_PAD=power_of_2(R), PARTS=max(1, power_of_2(R) // POSITIONS), **sizes, CHUNK=chunk,
        CHUNKS_PAD=power_of_2(-(-V // chunk)), C_TILE=min(1024, power_of_2(C)), DENSE=draft_logits is not None,
        FILTERED=floors is not None, TREE=parents is not None, COMMIT=commit,
        BLOCK=block and draft_logits is not None and parents is None, num_warps=8)


def accept_greedy_triton(chosen, draft_tokens, draft_lengths, parents, state: CommitTensors, verified_tokens,
                         verified_counts, path, commit: bool) -> None:
    """chosen [B, R] int64: the argmax of the logits, at the query positions that were read."""
    (B, R), C = chosen.shape, state.hidden.shape[1]
    tile = sequences_per_program(B, R)
    _greedy_kernel[(-(-B // tile),)](
        chosen, draft_tokens, draft_lengths, parents, verified_tokens, verified_counts, path, *state, B,
        state.tokens.shape[1],
        C, K=R - 1, TILE_B=tile, R_PAD=power_of_2(R), C_TILE=min(1024, power_of_2(C)), TREE=parents is not None,
        COMMIT=commit, num_warps=4)
