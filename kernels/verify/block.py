"""Verify drafts as blocks (Sun et al. 2024, Alg. 2): the contract of accept.py, with another rule for dense drafts.

With p_i the target's and q_i the drafter's distribution of the i-th draft x_i, n drafts, and

    P_0 = 1, P_i = min(1, P_{i-1} p_i(x_i) / q_i(x_i)),   Z_i = sum_x max(0, P_i p_{i+1}(x) - q_{i+1}(x))
    h_i = Z_i / (Z_i + 1 - P_i) for i < n,   h_n = P_n,

the largest i with u_i <= h_i is the number of accepted drafts. The next token is sampled from p_{n+1} if i = n, else from
max(0, P_i p_{i+1} - q_{i+1}). On average at least as many drafts are accepted as token by token. The length of a draft may
depend on its tokens so far: P(at least i accepted | x_1..x_i) = P_i whether draft i is the last or not.

Point masses and greedy sequences are verified as in accept.py. Noise is keyed by the length at the start of the step, not by
position: tokens after a rejected one are drafted again and must not meet the noise that rejected them.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.philox import ACCEPT, RESIDUAL, uniform, uniform_reference
from foredraft.kernels.core.workers import get_num_threads, parallel
from foredraft.kernels.sampling.top_k_top_p import inverse_cdf_loop, inverse_cdf_reference, warp_loop, warp_reference
from foredraft.kernels.verify.accept import accept_reference, accept_sequence_loop, residual_loop


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
        for r in range(n + 1):
            weights = np.empty(V, np.float32)
            total = warp_reference(logits[b, r], temperature[b], int(top_k[b]), float(top_p[b]), weights)
            distributions.append(weights.astype(np.float64) / total)
        drafters = [np.exp(draft_logits[b, r].astype(np.float64) - draft_lse[b, r]) for r in range(n)]
        prefix = [1.0]
        for r in range(n):
            prefix.append(min(1.0, prefix[r] * distributions[r][drafts[r]] / drafters[r][drafts[r]]))
        residuals = [np.maximum(0.0, prefix[r] * distributions[r] - drafters[r]) for r in range(n)]
        accepted = 0
        for i in range(1, n + 1):
            u = uniform_reference(seed, ACCEPT, start, i - 1)
            mass = 0.0 if i == n else float(sum(residuals[i]))
            if u <= prefix[n] if i == n else u * (mass + 1 - prefix[i]) <= mass:
                accepted = i
        residual = distributions[n] if accepted == n else residuals[accepted]
        if not sum(residual) > 0:
            residual = distributions[accepted]
        following = inverse_cdf_reference(residual, float(sum(residual)), uniform_reference(seed, RESIDUAL, start, accepted))
        tokens[b, : accepted + 1] = [*drafts[:accepted], following]
        path[b, : accepted + 1] = np.arange(accepted + 1)
        counts[b] = accepted + 1


@njit()
def _block_sequence(logits, drafts, n, draft_logits, lse, temperature, top_k, top_p, seed, start, tokens, path):
    V = logits.shape[1]
    p, totals, prefix = np.empty((max(n, 1), V), np.float32), np.empty(n), np.empty(n + 1)
    prefix[0] = 1.0
    for r in range(n):
        totals[r] = warp_loop(logits[r], temperature, top_k, top_p, p[r])
        q = np.exp(np.float64(draft_logits[r, drafts[r]]) - lse[r])
        prefix[r + 1] = min(1.0, prefix[r] * (p[r, drafts[r]] / totals[r]) / q)
    residual, mass, accepted = np.empty(V, np.float32), 0.0, n
    # from the longest prefix down: the first that passes is accepted
    while accepted > 0:
        u = uniform(seed, ACCEPT, start, accepted - 1)
        if accepted == n:
            if u <= prefix[n]:
                break
        else:
            mass = residual_loop(p[accepted], np.float32(prefix[accepted] / totals[accepted]), draft_logits[accepted],
                                 np.float32(lse[accepted]), residual)
            if u * (mass + 1.0 - prefix[accepted]) <= mass:
                break
        accepted -= 1
    u = uniform(seed, RESIDUAL, start, accepted)
    if accepted == n:
        total = warp_loop(logits[n], temperature, top_k, top_p, p[0])
        token = inverse_cdf_loop(p[0], total, u)
    else:
        if accepted == 0:
            mass = residual_loop(p[0], np.float32(1.0 / totals[0]), draft_logits[0], np.float32(lse[0]), residual)
        token = inverse_cdf_loop(residual, mass, u) if mass > 0 else inverse_cdf_loop(p[accepted], totals[accepted], u)
    for i in range(accepted):
        tokens[i] = drafts[i]
        path[i] = i
    tokens[accepted] = token
    path[accepted] = accepted
    return accepted + 1


@parallel
@njit()
def _block_sequences(first, last, logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature,
                     top_k, top_p, seeds, starts, tokens, counts, path):
    for b in range(first, last):
        q, lse = np.empty((0, 0), np.float32), np.empty(0, np.float64)
        if draft_logits.shape[0] > 0:
            q, lse = draft_logits[b], draft_lse[b]
        if dense[b] and temperature[b] > 0:
            counts[b] = _block_sequence(logits[b], draft_tokens[b], draft_lengths[b], q, lse, temperature[b], top_k[b],
                                        top_p[b], seeds[b], starts[b], tokens[b], path[b])
        else:
            counts[b] = accept_sequence_loop(logits[b], draft_tokens[b], draft_lengths[b], parents[b], dense[b], q, lse,
                                             temperature[b], top_k[b], top_p[b], seeds[b], starts[b], tokens[b], path[b])


@njit()
def _block_loop(threads, *arguments):
    _block_sequences(arguments[0].shape[0], threads, *arguments)


def block_numba(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p,
                seeds, starts, tokens, counts, path) -> None:
    _block_loop(get_num_threads(), logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse,
                temperature, top_k, top_p, seeds, starts, tokens, counts, path)


BLOCK = {"reference": block_reference, "numba": block_numba}
