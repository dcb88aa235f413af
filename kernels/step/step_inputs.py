"""What the target reads next, and how much may be drafted, from a state's tensors.

    tokens [B, T + 1], lengths [B] int64, finished [B] bool     the state
    draft_tokens [B, K], draft_lengths [B] int64                the draft; parents [B, K] int64, or None for a chain
    read [B, R], positions [B, R] int64     out: row 0 is the last committed id; -1: nothing to read there
    above [B, R] int64                      out, of a tree: the row each row follows, -1 for row 0
    limits, widths [B] int64 -> allowed [B] int64               the ids a row may still draft: `widths` cut to the room left

A tree's rows past a draft may follow any row before them. Every round of every row runs these: on the CPU each is one
compiled call, where a dozen small tensor operations took a sixth of a small target's round.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import jit, njit, power_of_2, tile_rows, tl


def inputs_reference(tokens, lengths, finished, draft_tokens, draft_lengths, parents, read, positions, above) -> None:
    B, R = read.shape
    last = lengths - 1
    read[:, 0], read[:, 1:] = tokens[np.arange(B), last], draft_tokens
    depth = np.tile(np.arange(R), (B, 1))
    if parents is not None:
        above[:, 0], above[:, 1:] = -1, parents
        for row in range(1, R):
            depth[:, row] = depth[np.arange(B), above[:, row]] + 1
    unread = (np.arange(R) > draft_lengths[:, None]) | finished[:, None]
    positions[:] = np.where(unread, -1, last[:, None] + depth)


@njit()
def _inputs_loop(tokens, lengths, finished, draft_tokens, draft_lengths, read, positions):
    for b in range(read.shape[0]):
        last = lengths[b] - 1
        read[b, 0] = tokens[b, last]
        positions[b, 0] = -1 if finished[b] else last
        for row in range(1, read.shape[1]):
            read[b, row] = draft_tokens[b, row - 1]
            positions[b, row] = -1 if finished[b] or row > draft_lengths[b] else last + row


@njit()
def _branches_loop(parents, positions, above):
    depth = np.zeros(above.shape[1], np.int64)
    for b in range(above.shape[0]):
        above[b, 0] = -1
        for row in range(1, above.shape[1]):
            above[b, row] = parents[b, row - 1]
            depth[row] = depth[above[b, row]] + 1
            if positions[b, row] >= 0:
                positions[b, row] = positions[b, 0] + depth[row]


def inputs_numba(tokens, lengths, finished, draft_tokens, draft_lengths, parents, read, positions, above) -> None:
    _inputs_loop(tokens, lengths, finished, draft_tokens, draft_lengths, read, positions)
    if parents is not None:
        _branches_loop(parents, positions, above)


def allowed_reference(lengths, limits, finished, widths, allowed) -> None:
    allowed[:] = np.where(finished, 0, np.maximum(np.minimum(widths, limits - lengths - 1), 0))


@njit()
def _allowed_loop(lengths, limits, finished, widths, allowed):
    for b in range(allowed.shape[0]):
        allowed[b] = 0 if finished[b] else max(min(widths[b], limits[b] - lengths[b] - 1), 0)


def allowed_numba(lengths, limits, finished, widths, allowed) -> None:
    _allowed_loop(lengths, limits, finished, widths, allowed)


@jit
def depths(parents, b, inside, K: tl.constexpr, R_PAD: tl.constexpr):
    """How deep each row of a tree lies, [N, R_PAD] int64, for batch rows b [N]; also called by verification.py."""
    row = tl.arange(0, R_PAD)[None, :]
    above_all = tl.load(parents + b[:, None] * K + row, mask=inside[:, None] & (row < K), other=0)
    depth = tl.zeros((b.shape[0], R_PAD), tl.int64)
    for i in range(K):
        parent = tl.sum(tl.where(row == i, above_all, 0), axis=1)
        above = tl.sum(tl.where(row == parent[:, None], depth, 0), axis=1)
        depth = tl.where(row == i + 1, above[:, None] + 1, depth)
    return depth


@jit
def _inputs_kernel(tokens, lengths, finished, draft_tokens, draft_lengths, parents, read, positions, above, B, T1,
                   K: tl.constexpr, ROWS: tl.constexpr, R_PAD: tl.constexpr, TREE: tl.constexpr):
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = b < B
    row = tl.arange(0, R_PAD)[None, :]
    last = tl.load(lengths + b, mask=inside, other=1) - 1
    proposed = tl.load(draft_lengths + b, mask=inside, other=0)
    live = inside & (tl.load(finished + b, mask=inside, other=1) == 0)
    written = inside[:, None] & (row <= K)
    drafted = written & (row > 0)
    first = tl.load(tokens + b * T1 + last, mask=inside, other=0)
    drafts = tl.load(draft_tokens + b[:, None] * K + row - 1, mask=drafted, other=0)
    place = b[:, None] * (K + 1) + row
    tl.store(read + place, tl.where(row == 0, first[:, None], drafts), mask=written)
    depth = row + tl.zeros((ROWS, R_PAD), tl.int64)
    if TREE:
        depth = depths(parents, b, inside, K, R_PAD)
        tl.store(above + place, tl.load(parents + b[:, None] * K + row - 1, mask=drafted, other=-1), mask=written)
    is_read = live[:, None] & (row <= proposed[:, None])
    tl.store(positions + place, tl.where(is_read, last[:, None] + depth, -1), mask=written)


def inputs_triton(tokens, lengths, finished, draft_tokens, draft_lengths, parents, read, positions, above) -> None:
    """parents and above may be None: a chain."""
    B, R = read.shape
    rows = tile_rows(B, R)
    _inputs_kernel[(-(-B // rows),)](
        tokens, lengths, finished, draft_tokens, draft_lengths, parents, read, positions, above, B, tokens.shape[1], K=R - 1,
        ROWS=rows, R_PAD=power_of_2(R), TREE=parents is not None, num_warps=1)


@jit
def room(b, inside, lengths, limits, finished, widths):
    """How many ids rows b may still draft; also called by the drafters' kernels."""
    left = tl.load(limits + b, mask=inside, other=0) - tl.load(lengths + b, mask=inside, other=0) - 1
    left = tl.maximum(tl.minimum(tl.load(widths + b, mask=inside, other=0), left), 0)
    return tl.where(tl.load(finished + b, mask=inside, other=1) == 0, left, 0)


@jit
def _allowed_kernel(lengths, limits, finished, widths, allowed, B, ROWS: tl.constexpr):
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tl.store(allowed + b, room(b, b < B, lengths, limits, finished, widths), mask=b < B)


def allowed_triton(lengths, limits, finished, widths, allowed) -> None:
    B = allowed.shape[0]
    _allowed_kernel[(-(-B // 128),)](lengths, limits, finished, widths, allowed, B, ROWS=128, num_warps=4)


INPUTS = {"reference": inputs_reference, "numba": inputs_numba, "triton": inputs_triton}
ALLOWED = {"reference": allowed_reference, "numba": allowed_numba, "triton": allowed_triton}
