"""Verify drafts: how far each row's draft stands, and the token that follows.

    logits         [B, R, V] float32   the target's, row 0 after the last committed token, row i + 1 after draft i
    draft_tokens   [B, K] int64        draft_lengths [B] int64 in 0..K
    parents        [B, K] int64        the row that draft i follows: i for a chain, earlier rows in a tree
    dense          [B] bool            draft i of row b was drawn from softmax(draft_logits[b, i]); else a point mass
    draft_logits   [B, K, V] float32   read for dense rows only (else may be empty); draft_lse [B, K] float64: their
                                       log-sum-exp. After temperature, top-k and top-p: the very distribution that was sampled
    temperature, top_k, top_p  [B]     the target's distribution (distribution.py); temperature 0 is greedy
    seeds, starts  [B] int64           key of the random numbers: the request's seed, its length at the round's start
    tokens, path   [B, R] int64        out: what to emit, and the rows walked (row 0 first)
    counts         [B] int64           out: tokens emitted, 1..R

Point masses and greedy rows: y is drawn from p (or is its argmax) and a draft stands iff it equals y, so y is also the
replacement; noise is keyed by (seed, position), so a seeded row equals its own plain sampling.

Dense rows: the drafts x_1, x_2, ... that follow the same row are tried in their order, with P = p at first: x_i stands iff
u q_i(x_i) <= P(x_i), else P becomes max(0, P - q_i), normalised; if none stands, y ~ P. With one draft a row that is
Leviathan et al. 2023, algorithm 1; with independent siblings, all q_i alike, the multi-step speculative sampling of
SpecInfer (Miao et al. 2023, algorithm 2); with siblings drawn without replacement, q_i being the drafter's distribution without
x_1..x_i-1, the recursive rejection sampling of Jeon et al. 2024. It needs no more than that q_i hangs on nothing but the
siblings before x_i: given those, x_i is drawn from q_i and P is the distribution still owed, so that a step of rejection sampling
pays it exactly. Noise is keyed by (seed, stream, start, draft). On a device: verification.py, dense rows as chains only.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop
from foredraft.kernels.core.backend import njit, prange
from foredraft.kernels.core.exp import exp32
from foredraft.kernels.core.philox import ACCEPT, POINT, RESIDUAL, uniform, uniform_reference
from foredraft.kernels.sampling.top_k_top_p import draw_loop, draw_reference, warp_loop, warp_reference


def accept_reference(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k,
                     top_p, seeds, starts, tokens, counts, path) -> None:
    B, _, V = logits.shape
    p = np.empty(V, np.float32)
    for b in range(B):
        seed, start, row, n = int(seeds[b]), int(starts[b]), 0, 0
        path[b, 0] = 0
        while True:
            if temperature[b] > 0:
                total = warp_reference(logits[b, row], temperature[b], int(top_k[b]), float(top_p[b]), p)
            following = None
            if temperature[b] == 0 or not dense[b]:
                if temperature[b] == 0:
                    token = int(np.argmax(logits[b, row]))
                else:
                    token = draw_reference(p, total, uniform_reference(seed, POINT, start + n, 0))
                for i in range(int(draft_lengths[b])):
                    if parents[b, i] == row and draft_tokens[b, i] == token:
                        following = i + 1
                        break
            else:
                distribution, whole = p.astype(np.float64), float(total)
                for i in range(int(draft_lengths[b])):
                    if parents[b, i] != row:
                        continue
                    token = int(draft_tokens[b, i])
                    q = np.exp(draft_logits[b, i].astype(np.float64) - draft_lse[b, i])
                    if uniform_reference(seed, ACCEPT, start, i) * q[token] <= distribution[token] / whole:
                        following = i + 1
                        break
                    residual = np.maximum(0.0, distribution / whole - q)
                    if not sum(residual) > 0:
                        break
                    distribution, whole = residual, float(sum(residual))
                if following is None:
                    token = draw_reference(distribution, whole, uniform_reference(seed, RESIDUAL, start, row))
            tokens[b, n] = token
            n += 1
            if following is None:
                break
            row = following
            path[b, n] = row
        counts[b] = n


@njit()
def _child(draft_tokens, parents, length, row, token):
    """The row of the draft that follows `row` with this token, or -1."""
    for i in range(length):
        if parents[i] == row and draft_tokens[i] == token:
            return i + 1
    return -1


@njit(fastmath={"reassoc", "contract"})
def _residual(p, scale, draft_logits, lse, residual):
    """max(0, p scale - q) into residual [V] float32; returns its sum."""
    mass = 0.0
    for i in range(p.shape[0]):
        rest = p[i] * scale - exp32(draft_logits[i] - lse)
        residual[i] = rest if rest > np.float32(0.0) else np.float32(0.0)
        mass += np.float64(residual[i])
    return mass


@njit()
def _accept_row(logits, draft_tokens, length, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p, seed,
                start, tokens, path):
    V = logits.shape[1]
    p = np.empty(V if temperature > 0 else 0, np.float32)
    residual = np.empty(V if dense else 0, np.float32)
    row = 0
    n = 0
    path[0] = 0
    while True:
        total = 0.0
        if temperature > 0:
            total = warp_loop(logits[row], temperature, top_k, top_p, p)
        following, token = -1, np.int64(0)
        if temperature == 0:
            token = argmax_loop(logits[row])
            following = _child(draft_tokens, parents, length, row, token)
        elif not dense:
            token = draw_loop(p, total, uniform(seed, POINT, start + n, 0))
            following = _child(draft_tokens, parents, length, row, token)
        else:
            for i in range(length):
                if parents[i] != row:
                    continue
                token = draft_tokens[i]
                q = np.exp(np.float64(draft_logits[i, token]) - draft_lse[i])
                if uniform(seed, ACCEPT, start, i) * q <= p[token] / total:
                    following = i + 1
                    break
                mass = _residual(p, np.float32(1.0 / total), draft_logits[i], np.float32(draft_lse[i]), residual)
                if not mass > 0:
                    break
                p, residual, total = residual, p, mass
            if following < 0:
                token = draw_loop(p, total, uniform(seed, RESIDUAL, start, row))
        tokens[n] = token
        n += 1
        if following < 0:
            return n
        row = following
        path[n] = row


@njit(parallel=True)
def _accept_loop(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p,
                 seeds, starts, tokens, counts, path):
    for b in prange(logits.shape[0]):
        q, lse = np.empty((0, 0), np.float32), np.empty(0, np.float64)
        if draft_logits.shape[0] > 0:
            q, lse = draft_logits[b], draft_lse[b]
        counts[b] = _accept_row(logits[b], draft_tokens[b], draft_lengths[b], parents[b], dense[b], q, lse, temperature[b],
                                top_k[b], top_p[b], seeds[b], starts[b], tokens[b], path[b])


def accept_numba(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p,
                 seeds, starts, tokens, counts, path) -> None:
    _accept_loop(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p,
                 seeds, starts, tokens, counts, path)


def accept_greedy_reference(chosen, draft_tokens, draft_lengths, parents, tokens, counts, path) -> None:
    """The greedy case when only the argmax [B, R] int64 is known; the other tensors as above."""
    for b in range(chosen.shape[0]):
        row, n = 0, 0
        path[b, 0] = 0
        while True:
            tokens[b, n] = chosen[b, row]
            n += 1
            standing = [i + 1 for i in range(int(draft_lengths[b]))
                        if parents[b, i] == row and draft_tokens[b, i] == chosen[b, row]]
            if not standing:
                break
            row = standing[0]
            path[b, n] = row
        counts[b] = n


@njit()
def _accept_greedy_loop(chosen, draft_tokens, draft_lengths, parents, tokens, counts, path):
    for b in range(chosen.shape[0]):
        row = 0
        n = 0
        path[b, 0] = 0
        while row >= 0:
            path[b, n] = row
            tokens[b, n] = chosen[b, row]
            row = _child(draft_tokens[b], parents[b], draft_lengths[b], row, chosen[b, row])
            n += 1
        counts[b] = n


def accept_greedy_numba(chosen, draft_tokens, draft_lengths, parents, tokens, counts, path) -> None:
    _accept_greedy_loop(chosen, draft_tokens, draft_lengths, parents, tokens, counts, path)


ACCEPT_SAMPLED = {"reference": accept_reference, "numba": accept_numba}
ACCEPT_GREEDY = {"reference": accept_greedy_reference, "numba": accept_greedy_numba}
