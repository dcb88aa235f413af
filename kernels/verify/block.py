"""Verify drafts as blocks (Sun et al. 2024, algorithm 2): accept.py's contract, with another rule for dense rows.

With p_i the target's, q_i the drafter's distribution of the i-th draft x_i, n drafts, and

    P_0 = 1, P_i = min(1, P_{i-1} p_i(x_i) / q_i(x_i)),   Z_i = sum_x max(0, P_i p_{i+1}(x) - q_{i+1}(x))
    h_i = Z_i / (Z_i + 1 - P_i) for i < n,   h_n = P_n,

the longest i with u_i <= h_i drafts stand, whatever the shorter ones say, and the next id is drawn from p_{n+1} if i = n,
else from max(0, P_i p_{i+1} - q_{i+1}). No fewer drafts stand on average than token by token: a draft that is refused may
be made up for by a later one. Where a draft stops may depend on its ids so far: P(at least i stand | x_1..x_i) = P_i holds
whether i is the last or not.

Rows of point masses and greedy rows are accept.py's. Noise is keyed by the round's start: ids past a refused one are
drafted again, and keyed by their position they would meet the noise that refused them. On a device: verification.py.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit, prange
from foredraft.kernels.core.philox import ACCEPT, RESIDUAL, uniform, uniform_reference
from foredraft.kernels.sampling.top_k_top_p import draw_loop, draw_reference, warp_loop, warp_reference
from foredraft.kernels.verify.accept import _accept_row, _residual, accept_reference


def block_reference(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p,
                    seeds, starts, tokens, counts, path) -> None:
    accept_reference(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p,
                     seeds, starts, tokens, counts, path)
    V = logits.shape[2]
    for b in range(len(logits)):
        if not dense[b] or temperature[b] == 0:
            continue
        n, seed, start = int(draft_lengths[b]), int(seeds[b]), int(starts[b])
        drafts = [int(token) for token in draft_tokens[b, :n]]
        distributions = []
        for row in range(n + 1):
            weights = np.empty(V, np.float32)
            total = warp_reference(logits[b, row], temperature[b], int(top_k[b]), float(top_p[b]), weights)
            distributions.append(weights.astype(np.float64) / total)
        others = [np.exp(draft_logits[b, row].astype(np.float64) - draft_lse[b, row]) for row in range(n)]
        whole = [1.0]
        for row in range(n):
            whole.append(min(1.0, whole[row] * distributions[row][drafts[row]] / others[row][drafts[row]]))
        rests = [np.maximum(0.0, whole[row] * distributions[row] - others[row]) for row in range(n)]
        standing = 0
        for i in range(1, n + 1):
            u = uniform_reference(seed, ACCEPT, start, i - 1)
            mass = 0.0 if i == n else float(sum(rests[i]))
            if u <= whole[n] if i == n else u * (mass + 1 - whole[i]) <= mass:
                standing = i
        rest = distributions[n] if standing == n else rests[standing]
        if not sum(rest) > 0:
            rest = distributions[standing]
        following = draw_reference(rest, float(sum(rest)), uniform_reference(seed, RESIDUAL, start, standing))
        tokens[b, : standing + 1] = [*drafts[:standing], following]
        path[b, : standing + 1] = np.arange(standing + 1)
        counts[b] = standing + 1


@njit()
def _block_row(logits, drafts, n, draft_logits, lse, temperature, top_k, top_p, seed, start, tokens, path):
    V = logits.shape[1]
    p, totals, whole = np.empty((max(n, 1), V), np.float32), np.empty(n), np.empty(n + 1)
    whole[0] = 1.0
    for row in range(n):
        totals[row] = warp_loop(logits[row], temperature, top_k, top_p, p[row])
        q = np.exp(np.float64(draft_logits[row, drafts[row]]) - lse[row])
        whole[row + 1] = min(1.0, whole[row] * (p[row, drafts[row]] / totals[row]) / q)
    residual, mass, standing = np.empty(V, np.float32), 0.0, n
    # from the longest down: the first to stand is the one
    while standing > 0:
        u = uniform(seed, ACCEPT, start, standing - 1)
        if standing == n:
            if u <= whole[n]:
                break
        else:
            mass = _residual(p[standing], np.float32(whole[standing] / totals[standing]), draft_logits[standing],
                             np.float32(lse[standing]), residual)
            if u * (mass + 1.0 - whole[standing]) <= mass:
                break
        standing -= 1
    u = uniform(seed, RESIDUAL, start, standing)
    if standing == n:
        total = warp_loop(logits[n], temperature, top_k, top_p, p[0])
        token = draw_loop(p[0], total, u)
    else:
        if standing == 0:
            mass = _residual(p[0], np.float32(1.0 / totals[0]), draft_logits[0], np.float32(lse[0]), residual)
        token = draw_loop(residual, mass, u) if mass > 0 else draw_loop(p[standing], totals[standing], u)
    for i in range(standing):
        tokens[i] = drafts[i]
        path[i] = i
    tokens[standing] = token
    path[standing] = standing
    return standing + 1


@njit(parallel=True)
def _block_loop(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p,
                seeds, starts, tokens, counts, path):
    for b in prange(logits.shape[0]):
        q, lse = np.empty((0, 0), np.float32), np.empty(0, np.float64)
        if draft_logits.shape[0] > 0:
            q, lse = draft_logits[b], draft_lse[b]
        if dense[b] and temperature[b] > 0:
            counts[b] = _block_row(logits[b], draft_tokens[b], draft_lengths[b], q, lse, temperature[b], top_k[b], top_p[b],
                                   seeds[b], starts[b], tokens[b], path[b])
        else:
            counts[b] = _accept_row(logits[b], draft_tokens[b], draft_lengths[b], parents[b], dense[b], q, lse,
                                    temperature[b], top_k[b], top_p[b], seeds[b], starts[b], tokens[b], path[b])


def block_numba(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p,
                seeds, starts, tokens, counts, path) -> None:
    _block_loop(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p,
                seeds, starts, tokens, counts, path)


BLOCK = {"reference": block_reference, "numba": block_numba}
