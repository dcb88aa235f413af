"""The children of a tree node: the most likely tokens, or sampled tokens with the distribution of each.

    scores       [F + X] float32         of one sequence as in vocabulary_head.py; overwritten
    b, vocabulary                        the sequence, and its VocabularyHead
    first, most  int                     offset of the first child in the draft, largest number of children
    temperature, top_k, top_p, seed, start    of the sequence, as in sampling/sample.py; temperature 0 takes the most likely
                                         tokens, of equal ones the first columns
    replaced     bool                    whether children are sampled independently (SpecInfer, Miao et al. 2023); else
                                         without replacement, each from the renormalised distribution without the tokens
                                         before it (Jeon et al. 2024)
    drafted      [K] int64               out, from `first` on
    logits, lse  [K, V] float32, [K] float64     out above temperature 0: the distribution that each child was sampled from
    returns      int                     the number of children: without replacement at most the tokens of the distribution

Noise is keyed by (seed, DRAFT, start, offset in the draft). With one child this is sample_draft of vocabulary_head.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop, largest_loop
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.philox import DRAFT, uniform, uniform_reference
from foredraft.kernels.core.rows import copy_row
from foredraft.kernels.sampling.top_k_top_p import (
    inverse_cdf_loop,
    inverse_cdf_reference,
    sum_loop,
    warp_loop,
    warp_reference,
)


class Tree(NamedTuple):
    """The shape of a tree of N nodes, parents first; a sequence that may draft n tokens takes the first n nodes.

    parents [N] int64: 0 for the last committed token, j + 1 for node j. depths [N] int64, from 1. replaced: see above.
    """

    parents: np.ndarray
    depths: np.ndarray
    replaced: bool


def children_reference(scores, b, vocabulary, temperature, top_k, top_p, seed, start, first, most, replaced, drafted, logits,
                       lse) -> int:
    own = int(vocabulary.own_counts[b])
    tokens = np.concatenate((vocabulary.tokens, vocabulary.own_tokens[b, :own]))
    scores = scores[: len(tokens)]
    if temperature == 0:
        order = [at for at in sorted(range(len(tokens)), key=lambda at: (-scores[at], at)) if scores[at] > -math.inf][:most]
        drafted[first : first + len(order)] = tokens[order]
        return len(order)
    weights = np.empty(len(tokens), np.float32)
    warp_reference(scores, temperature, top_k, top_p, weights)
    for i in range(first, first + most):
        total = float(weights.sum(dtype=np.float64))
        if total == 0:
            return i - first
        at = inverse_cdf_reference(weights, total, uniform_reference(int(seed), DRAFT, int(start), int(i)))
        drafted[i], lse[i] = tokens[at], math.log(total)
        logits[i] = -np.inf
        kept = weights > 0
        logits[i, tokens[kept]] = (scores[kept] - scores.max()) / temperature
        if not replaced:
            weights[at] = 0
    return most


@njit()
def children_loop(scores, b, vocabulary, temperature, top_k, top_p, seed, start, first, most, replaced, drafted, logits,
                  lse):
    F = vocabulary.tokens.shape[0]
    scores = scores[: F + vocabulary.own_counts[b]]
    if temperature == 0:
        for i in range(first, first + most):
            at = argmax_loop(scores)
            if scores[at] == -np.inf:
                return i - first
            drafted[i] = vocabulary.tokens[at] if at < F else vocabulary.own_tokens[b, at - F]
            scores[at] = np.float32(-np.inf)
        return most
    weights = np.empty(scores.shape[0], np.float32)
    total, at = warp_loop(scores, temperature, top_k, top_p, weights), 0
    top, rate = largest_loop(scores), np.float32(1.0 / np.float64(temperature))
    for i in range(first, first + most):
        if i == first:
            logits[i] = np.float32(-np.inf)
            for j in range(scores.shape[0]):
                if weights[j] > 0:
                    logits[i, vocabulary.tokens[j] if j < F else vocabulary.own_tokens[b, j - F]] = (scores[j] - top) * rate
        else:
            copy_row(logits[i - 1], logits[i])
            if not replaced:
                weights[at] = np.float32(0.0)
                total = sum_loop(weights)
                if not total > 0:
                    return i - first
                logits[i, drafted[i - 1]] = np.float32(-np.inf)
        at = inverse_cdf_loop(weights, total, uniform(seed, DRAFT, start, i))
        drafted[i] = vocabulary.tokens[at] if at < F else vocabulary.own_tokens[b, at - F]
        lse[i] = np.log(total)
    return most


def children_numba(scores, b, vocabulary, temperature, top_k, top_p, seed, start, first, most, replaced, drafted, logits,
                   lse) -> int:
    return children_loop(scores, b, vocabulary, temperature, top_k, top_p, seed, start, first, most, replaced, drafted,
                         logits, lse)


CHILDREN = {"reference": children_reference, "numba": children_numba}
