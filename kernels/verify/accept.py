"""Verify drafts by rejection sampling: which drafts are accepted, and the token that follows, target distribution unchanged.

Query position 0 is the last committed token, query position i + 1 is draft token i. p is the target's warped distribution,
q_i the distribution that draft i was sampled from. A *point mass* is a draft chosen without sampling (q_i = 1 on it); a
*dense* draft was sampled from a distribution over the vocabulary.

    logits         [B, R, V] float32   the target's; logits[b, r] is for the token after query position r
    draft_tokens   [B, K] int64        draft_lengths [B] int64 in 0..K
    parents        [B, K] int64        query position that draft i follows: i without branches, an earlier one in a tree
    dense          [B] bool            whether the drafts of a sequence are dense; else they are point masses
    draft_logits   [B, K, V] float32   log weights of q after temperature, top-k and top-p; may be empty without dense drafts
    draft_lse      [B, K] float64      their log-sum-exp
    temperature, top_k, top_p  [B]     of the target's distribution (sampling/top_k_top_p.py); temperature 0 is greedy
    seeds, starts  [B] int64           key of the random numbers: the request's seed, the length at the start of the step
    tokens, path   [B, R] int64        out: emitted tokens, and the query positions on the accepted path, 0 first
    counts         [B] int64           out: number of emitted tokens, 1..R

Point masses and greedy sequences: y is sampled from p (or is its argmax). A draft is accepted iff it equals y; otherwise y
is emitted. Noise is keyed by (seed, position), so a seeded sequence equals its own plain sampling.

Dense drafts: the drafts x_1, x_2, ... that follow the same query position are tried in order, with P = p at first. x_i is
accepted iff u q_i(x_i) <= P(x_i); otherwise P becomes max(0, P - q_i), normalised. If none is accepted, y ~ P is emitted.
Noise is keyed by (seed, stream, start, draft). This is, for one draft a position, Leviathan et al. 2023, Alg. 1; for
siblings sampled independently from one q, SpecInfer (Miao et al. 2023, Alg. 2); for siblings sampled without replacement,
with q_i conditioned on the siblings before x_i, recursive rejection sampling (Jeon et al. 2024). q_i may depend on no more
than the siblings before x_i.

accept_triton.py is the version for GPUs; its dense drafts have no branches.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.exp import exp32
from foredraft.kernels.core.philox import ACCEPT, POINT, RESIDUAL, uniform, uniform_reference
from foredraft.kernels.core.workers import get_num_threads, parallel
from foredraft.kernels.sampling.top_k_top_p import inverse_cdf_loop, inverse_cdf_reference, warp_loop, warp_reference


def accept_reference(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k,
                     top_p, seeds, starts, tokens, counts, path) -> None:
    B, _, V = logits.shape
    p = np.empty(V, np.float32)
    for b in range(B):
        seed, start, r, n = int(seeds[b]), int(starts[b]), 0, 0
        path[b, 0] = 0
        while True:
            if temperature[b] > 0:
                total = warp_reference(logits[b, r], temperature[b], int(top_k[b]), float(top_p[b]), p)
            child = None
            if temperature[b] == 0 or not dense[b]:
                if temperature[b] == 0:
                    token = int(np.argmax(logits[b, r]))
                else:
                    token = inverse_cdf_reference(p, total, uniform_reference(seed, POINT, start + n, 0))
                for i in range(int(draft_lengths[b])):
                    if parents[b, i] == r and draft_tokens[b, i] == token:
                        child = i + 1
                        break
            else:
                distribution, mass = p.astype(np.float64), float(total)
                for i in range(int(draft_lengths[b])):
                    if parents[b, i] != r:
                        continue
                    token = int(draft_tokens[b, i])
                    q = np.exp(draft_logits[b, i].astype(np.float64) - draft_lse[b, i])
                    if uniform_reference(seed, ACCEPT, start, i) * q[token] <= distribution[token] / mass:
                        child = i + 1
                        break
                    residual = np.maximum(0.0, distribution / mass - q)
                    if not sum(residual) > 0:
                        break
                    distribution, mass = residual, float(sum(residual))
                if child is None:
                    token = inverse_cdf_reference(distribution, mass, uniform_reference(seed, RESIDUAL, start, r))
            tokens[b, n] = token
            n += 1
            if child is None:
                break
            r = child
            path[b, n] = r
        counts[b] = n


@njit()
def _child(draft_tokens, parents, length, r, token):
    """The query position of the draft that follows position `r` and equals `token`, or -1."""
    for i in range(length):
        if parents[i] == r and draft_tokens[i] == token:
            return i + 1
    return -1


@njit(fastmath={"reassoc", "contract"})
def residual_loop(p, scale, draft_logits, lse, residual):
    """Write max(0, p scale - q) to residual [V] float32; returns its sum."""
    mass = 0.0
    for i in range(p.shape[0]):
        rest = p[i] * scale - exp32(draft_logits[i] - lse)
        residual[i] = rest if rest > np.float32(0.0) else np.float32(0.0)
        mass += np.float64(residual[i])
    return mass


@njit()
def accept_sequence_loop(logits, draft_tokens, length, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p,
                         seed, start, tokens, path):
    """accept of one sequence; returns how many tokens it emits."""
    V = logits.shape[1]
    p = np.empty(V if temperature > 0 else 0, np.float32)
    residual = np.empty(V if dense else 0, np.float32)
    r = 0
    n = 0
    path[0] = 0
    while True:
        total = 0.0
        if temperature > 0:
            total = warp_loop(logits[r], temperature, top_k, top_p, p)
        child, token = -1, np.int64(0)
        if temperature == 0:
            token = argmax_loop(logits[r])
            child = _child(draft_tokens, parents, length, r, token)
        elif not dense:
            token = inverse_cdf_loop(p, total, uniform(seed, POINT, start + n, 0))
            child = _child(draft_tokens, parents, length, r, token)
        else:
            for i in range(length):
                if parents[i] != r:
                    continue
                token = draft_tokens[i]
                q = np.exp(np.float64(draft_logits[i, token]) - draft_lse[i])
                if uniform(seed, ACCEPT, start, i) * q <= p[token] / total:
                    child = i + 1
                    break
                mass = residual_loop(p, np.float32(1.0 / total), draft_logits[i], np.float32(draft_lse[i]), residual)
                if not mass > 0:
                    break
                p, residual, total = residual, p, mass
            if child < 0:
                token = inverse_cdf_loop(p, total, uniform(seed, RESIDUAL, start, r))
        tokens[n] = token
        n += 1
        if child < 0:
            return n
        r = child
        path[n] = r


@parallel
@njit()
def _accept_sequences(first, last, logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature,
                      top_k, top_p, seeds, starts, tokens, counts, path):
    for b in range(first, last):
        q, lse = np.empty((0, 0), np.float32), np.empty(0, np.float64)
        if draft_logits.shape[0] > 0:
            q, lse = draft_logits[b], draft_lse[b]
        counts[b] = accept_sequence_loop(logits[b], draft_tokens[b], draft_lengths[b], parents[b], dense[b], q, lse,
                                         temperature[b], top_k[b], top_p[b], seeds[b], starts[b], tokens[b], path[b])


@njit()
def _accept_loop(threads, *arguments):
    _accept_sequences(arguments[0].shape[0], threads, *arguments)


def accept_numba(logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse, temperature, top_k, top_p,
                 seeds, starts, tokens, counts, path) -> None:
    _accept_loop(get_num_threads(), logits, draft_tokens, draft_lengths, parents, dense, draft_logits, draft_lse,
                 temperature, top_k, top_p, seeds, starts, tokens, counts, path)


def accept_greedy_reference(chosen, draft_tokens, draft_lengths, parents, tokens, counts, path) -> None:
    """Greedy sequences, from the argmax `chosen` [B, R] int64 of the logits; the other tensors as above."""
    for b in range(chosen.shape[0]):
        r, n = 0, 0
        path[b, 0] = 0
        while True:
            tokens[b, n] = chosen[b, r]
            n += 1
            accepted = [i + 1 for i in range(int(draft_lengths[b]))
                        if parents[b, i] == r and draft_tokens[b, i] == chosen[b, r]]
            if not accepted:
                break
            r = accepted[0]
            path[b, n] = r
        counts[b] = n


@njit()
def _accept_greedy_loop(chosen, draft_tokens, draft_lengths, parents, tokens, counts, path):
    for b in range(chosen.shape[0]):
        r = 0
        n = 0
        path[b, 0] = 0
        while r >= 0:
            path[b, n] = r
            tokens[b, n] = chosen[b, r]
            r = _child(draft_tokens[b], parents[b], draft_lengths[b], r, chosen[b, r])
            n += 1
        counts[b] = n


def accept_greedy_numba(chosen, draft_tokens, draft_lengths, parents, tokens, counts, path) -> None:
    _accept_greedy_loop(chosen, draft_tokens, draft_lengths, parents, tokens, counts, path)


ACCEPT_SAMPLED = {"reference": accept_reference, "numba": accept_numba}
ACCEPT_GREEDY = {"reference": accept_greedy_reference, "numba": accept_greedy_numba}
