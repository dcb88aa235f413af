"""The target's inputs of a step, and how many tokens may be drafted.

Query position 0 is the last committed token and query position i + 1 is draft token i. In a tree a draft may follow any
earlier query position. On the CPU each function is one compiled call: small torch operations would cost a sixth of a step.

    tokens [B, T + 1], lengths [B] int64, finished [B] bool     the decode state
    draft_tokens [B, K], draft_lengths [B] int64                the draft
    parents [B, K] int64                    query position that each draft follows; None without branches
    input_tokens [B, R], positions [B, R] int64     out: the target's input tokens and their decoder positions, -1: not read
    above [B, R] int64                      out, for a tree: the parent of each query position, -1 for position 0
    limits, budgets [B] int64                largest length of each sequence, draft length asked for
    allowed [B] int64                       out: `budgets`, at most what `limits` leaves; 0 for finished sequences
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit


def step_inputs_reference(tokens, lengths, finished, draft_tokens, draft_lengths, parents, input_tokens, positions,
                          above) -> None:
    B, R = input_tokens.shape
    last = lengths - 1
    input_tokens[:, 0], input_tokens[:, 1:] = tokens[np.arange(B), last], draft_tokens
    depth = np.tile(np.arange(R), (B, 1))
    if parents is not None:
        above[:, 0], above[:, 1:] = -1, parents
        for r in range(1, R):
            depth[:, r] = depth[np.arange(B), above[:, r]] + 1
    skipped = (np.arange(R) > draft_lengths[:, None]) | finished[:, None]
    positions[:] = np.where(skipped, -1, last[:, None] + depth)


@njit()
def _step_inputs_loop(tokens, lengths, finished, draft_tokens, draft_lengths, input_tokens, positions):
    for b in range(input_tokens.shape[0]):
        last = lengths[b] - 1
        input_tokens[b, 0] = tokens[b, last]
        positions[b, 0] = -1 if finished[b] else last
        for r in range(1, input_tokens.shape[1]):
            input_tokens[b, r] = draft_tokens[b, r - 1]
            positions[b, r] = -1 if finished[b] or r > draft_lengths[b] else last + r


@njit()
def _tree_loop(parents, positions, above):
    depth = np.zeros(above.shape[1], np.int64)
    for b in range(above.shape[0]):
        above[b, 0] = -1
        for r in range(1, above.shape[1]):
            above[b, r] = parents[b, r - 1]
            depth[r] = depth[above[b, r]] + 1
            if positions[b, r] >= 0:
                positions[b, r] = positions[b, 0] + depth[r]


def step_inputs_numba(tokens, lengths, finished, draft_tokens, draft_lengths, parents, input_tokens, positions,
                      above) -> None:
    _step_inputs_loop(tokens, lengths, finished, draft_tokens, draft_lengths, input_tokens, positions)
    if parents is not None:
        _tree_loop(parents, positions, above)


def allowed_reference(lengths, limits, finished, budgets, allowed) -> None:
    allowed[:] = np.where(finished, 0, np.maximum(np.minimum(budgets, limits - lengths - 1), 0))


@njit()
def _allowed_loop(lengths, limits, finished, budgets, allowed):
    for b in range(allowed.shape[0]):
        allowed[b] = 0 if finished[b] else max(min(budgets[b], limits[b] - lengths[b] - 1), 0)


def allowed_numba(lengths, limits, finished, budgets, allowed) -> None:
    _allowed_loop(lengths, limits, finished, budgets, allowed)


STEP_INPUTS = {"reference": step_inputs_reference, "numba": step_inputs_numba}
ALLOWED = {"reference": allowed_reference, "numba": allowed_numba}
