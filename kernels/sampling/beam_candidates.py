"""The best continuations of a request's beams, in one pass over their logits: no sort of the vocabulary, none of it copied.

    logits     [B, R, V] float32      log-probabilities, or logits where `normalise`
    sequences  [n] int64, r int       beam i reads logits[sequences[i], r]
    scores     [n] float32            sums of log-probabilities of the beams
    normalise  bool                   subtract the log-sum-exp of each beam's row
    noise      bool                   choose with Gumbel noise: that samples without replacement from softmax(values)
                                      (Kool et al. 2019), keyed by (seed, length)
    values     [k] float32            out: log-probability + score of the best, descending; -inf where there are fewer than k
    indices    [k] int64              out: beam * V + token; of equal values the lower index comes first
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.argmax import largest_loop
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.philox import BEAM, uniform, uniform_reference
from foredraft.kernels.core.sum_of_exp import sum_of_exp_loop

# Tokens whose maximum is compared before they are looked at one by one.
BLOCK = 128


def beam_candidates_reference(logits, sequences, r, scores, normalise, noise, seed, length, values, indices) -> None:
    V, found = logits.shape[2], []
    for i, sequence in enumerate(sequences.tolist()):
        row = logits[sequence, r].astype(np.float64)
        shift = row.max() + np.log(np.exp(row - row.max()).sum()) if normalise else 0.0
        for token in range(V):
            value = float(np.float32(row[token] - shift) + scores[i])
            key = value
            if noise:
                key -= float(np.log(-np.log(uniform_reference(seed, BEAM, length, i * V + token))))
            found.append((-key, i * V + token, value))
    values[:], indices[:] = -np.inf, 0
    best = sorted(found)[: len(values)]
    for place, (_, index, value) in enumerate(sorted(best, key=lambda one: (-one[2], one[1]))):
        values[place], indices[place] = value, index


@njit()
def _insert(keys, values, indices, count, key, value, index):
    """Put a candidate at its place among `count` sorted ones; returns how many there are."""
    k = keys.shape[0]
    place = count if count < k else k - 1
    while place > 0 and keys[place - 1] < key:
        keys[place], values[place], indices[place] = keys[place - 1], values[place - 1], indices[place - 1]
        place -= 1
    keys[place], values[place], indices[place] = key, value, index
    return min(count + 1, k)


@njit()
def beam_candidates_numba(logits, sequences, r, scores, normalise, noise, seed, length, values, indices):
    V, k = logits.shape[2], values.shape[0]
    keys = np.empty(k, np.float64)
    values[:] = np.float32(-np.inf)
    indices[:] = 0
    count = 0
    for i in range(sequences.shape[0]):
        row = logits[sequences[i], r]
        shift = 0.0
        if normalise:
            top = largest_loop(row)
            shift = np.float64(top) + np.log(sum_of_exp_loop(row))
        for start in range(0, V, BLOCK):
            stop = min(start + BLOCK, V)
            # no key exceeds its value by more than the largest noise of 53 bits
            bound = np.float64(np.float32(largest_loop(row[start:stop]) - shift) + scores[i]) + (37.0 if noise else 0.0)
            if count == k and bound <= keys[k - 1]:
                continue
            for token in range(start, stop):
                value = np.float32(row[token] - shift) + scores[i]
                key = np.float64(value)
                if noise:
                    key -= np.log(-np.log(uniform(seed, BEAM, length, i * V + token)))
                if count < k or key > keys[k - 1]:
                    count = _insert(keys, values, indices, count, key, value, i * V + token)
    if noise:
        order = np.argsort(-values[:count], kind="mergesort")
        values[:count], indices[:count] = values[order], indices[order]


BEAM_CANDIDATES = {"reference": beam_candidates_reference, "numba": beam_candidates_numba}
