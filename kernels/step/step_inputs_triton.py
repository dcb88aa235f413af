"""step_inputs.py in Triton; its contract holds."""

from __future__ import annotations

from foredraft.kernels.core.backend_triton import jit, power_of_2, sequences_per_program, tl


@jit
def tree_depths(parents, b, inside, K: tl.constexpr, R_PAD: tl.constexpr):
    """The depth of each query position of the trees of sequences b [N]: [N, R_PAD] int64."""
    r = tl.arange(0, R_PAD)[None, :]
    all_parents = tl.load(parents + b[:, None] * K + r, mask=inside[:, None] & (r < K), other=0)
    depth = tl.zeros((b.shape[0], R_PAD), tl.int64)
    for i in range(K):
        parent = tl.sum(tl.where(r == i, all_parents, 0), axis=1)
        above = tl.sum(tl.where(r == parent[:, None], depth, 0), axis=1)
        depth = tl.where(r == i + 1, above[:, None] + 1, depth)
    return depth


@jit(do_not_specialize=["B", "T1"])
def _step_inputs_kernel(tokens, lengths, finished, draft_tokens, draft_lengths, parents, input_tokens, positions, above, B,
                        T1, K: tl.constexpr, TILE_B: tl.constexpr, R_PAD: tl.constexpr, TREE: tl.constexpr):
    b = tl.program_id(0).to(tl.int64) * TILE_B + tl.arange(0, TILE_B)
    inside = b < B
    r = tl.arange(0, R_PAD)[None, :]
    last = tl.load(lengths + b, mask=inside, other=1) - 1
    proposed = tl.load(draft_lengths + b, mask=inside, other=0)
    live = inside & (tl.load(finished + b, mask=inside, other=1) == 0)
    written = inside[:, None] & (r <= K)
    is_draft = written & (r > 0)
    first = tl.load(tokens + b * T1 + last, mask=inside, other=0)
    drafts = tl.load(draft_tokens + b[:, None] * K + r - 1, mask=is_draft, other=0)
    at = b[:, None] * (K + 1) + r
    tl.store(input_tokens + at, tl.where(r == 0, first[:, None], drafts), mask=written)
    depth = r + tl.zeros((TILE_B, R_PAD), tl.int64)
    if TREE:
        depth = tree_depths(parents, b, inside, K, R_PAD)
        tl.store(above + at, tl.load(parents + b[:, None] * K + r - 1, mask=is_draft, other=-1), mask=written)
    is_read = live[:, None] & (r <= proposed[:, None])
    tl.store(positions + at, tl.where(is_read, last[:, None] + depth, -1), mask=written)


def step_inputs_triton(tokens, lengths, finished, draft_tokens, draft_lengths, parents, input_tokens, positions,
                       above) -> None:
    """One launch, without synchronisation. `parents` and `above` are None without branches."""
    B, R = input_tokens.shape
    tile = sequences_per_program(B, R)
    _step_inputs_kernel[(-(-B // tile),)](
        tokens, lengths, finished, draft_tokens, draft_lengths, parents, input_tokens, positions, above, B, tokens.shape[1],
        K=R - 1, TILE_B=tile, R_PAD=power_of_2(R), TREE=parents is not None, num_warps=1)


@jit
def drafts_allowed(b, inside, lengths, limits, finished, budgets):
    """How many tokens sequences b may draft; the drafters' kernels call it too."""
    left = tl.load(limits + b, mask=inside, other=0) - tl.load(lengths + b, mask=inside, other=0) - 1
    left = tl.maximum(tl.minimum(tl.load(budgets + b, mask=inside, other=0), left), 0)
    return tl.where(tl.load(finished + b, mask=inside, other=1) == 0, left, 0)


@jit(do_not_specialize=["B"])
def _allowed_kernel(lengths, limits, finished, budgets, allowed, B, TILE_B: tl.constexpr):
    b = tl.program_id(0).to(tl.int64) * TILE_B + tl.arange(0, TILE_B)
    tl.store(allowed + b, drafts_allowed(b, b < B, lengths, limits, finished, budgets), mask=b < B)


def allowed_triton(lengths, limits, finished, budgets, allowed) -> None:
    """One launch, without synchronisation."""
    B = allowed.shape[0]
    _allowed_kernel[(-(-B // 128),)](lengths, limits, finished, budgets, allowed, B, TILE_B=128, num_warps=4)
