"""Children of a node of a tree: the likeliest ids, or ids that are drawn, and the very distribution of each.

    scores       [F + X] float32 of one row, as shortlist.py has them; overwritten
    b, list      the row's sequence and its VocabularyHead;  first, most: place of the first child in the draft, how many at most
    temperature, top_k, top_p, seed, start    one row's, as in sample.py; temperature 0 takes the likeliest, of equals the
                 lower places
    replaced     bool: children are drawn independently (SpecInfer, Miao et al. 2023); else without replacement, each from
                 the distribution without the ids before it, renormalised (Jeon et al. 2024)
    drafted      [K] int64               out, from `first` on; returned is how many there are: without replacement no more
                                         than the distribution has ids
    logits, lse  [K, V] float32, [K] float64     out above temperature 0: the distribution that each child was drawn from

Noise is keyed by (seed, DRAFT, start, place in the draft). One child is pick of shortlist.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop, largest_loop
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.philox import DRAFT, uniform, uniform_reference
from foredraft.kernels.sampling.top_k_top_p import (
    inverse_cdf_loop,
    inverse_cdf_reference,
    sum_loop,
    warp_loop,
    warp_reference,
)


class Tree(NamedTuple):
    """What is to be drafted: parents [N] int64, row 0 the last committed id and row j + 1 node j, a node after its parent;
    depths [N] int64 from 1; replaced as above. A row that may draft n ids takes the first n nodes."""

    parents: np.ndarray
    depths: np.ndarray
    replaced: bool


def children_reference(scores, b, list, temperature, top_k, top_p, seed, start, first, most, replaced, drafted, logits,
                       lse) -> int:
    own = int(list.own_counts[b])
    ids = np.concatenate((list.ids, list.own_ids[b, :own]))
    scores = scores[: len(ids)]
    if temperature == 0:
        order = [at for at in sorted(range(len(ids)), key=lambda at: (-scores[at], at)) if scores[at] > -math.inf][:most]
        drafted[first : first + len(order)] = ids[order]
        return len(order)
    weights = np.empty(len(ids), np.float32)
    warp_reference(scores, temperature, top_k, top_p, weights)
    for place in range(first, first + most):
        total = float(weights.sum(dtype=np.float64))
        if total == 0:
            return place - first
        at = inverse_cdf_reference(weights, total, uniform_reference(int(seed), DRAFT, int(start), int(place)))
        drafted[place], lse[place] = ids[at], math.log(total)
        logits[place] = -np.inf
        kept = weights > 0
        logits[place, ids[kept]] = (scores[kept] - scores.max()) / temperature
        if not replaced:
            weights[at] = 0
    return most


@njit()
def children_loop(scores, b, list, temperature, top_k, top_p, seed, start, first, most, replaced, drafted, logits, lse):
    F = list.ids.shape[0]
    scores = scores[: F + list.own_counts[b]]
    if temperature == 0:
        for place in range(first, first + most):
            at = argmax_loop(scores)
            if scores[at] == -np.inf:
                return place - first
            drafted[place] = list.ids[at] if at < F else list.own_ids[b, at - F]
            scores[at] = np.float32(-np.inf)
        return most
    weights = np.empty(scores.shape[0], np.float32)
    total, at = warp_loop(scores, temperature, top_k, top_p, weights), 0
    top, rate = largest_loop(scores), np.float32(1.0 / np.float64(temperature))
    for place in range(first, first + most):
        if place == first:
            logits[place] = np.float32(-np.inf)
            for j in range(scores.shape[0]):
                if weights[j] > 0:
                    logits[place, list.ids[j] if j < F else list.own_ids[b, j - F]] = (scores[j] - top) * rate
        else:
            logits[place] = logits[place - 1]
            if not replaced:
                weights[at] = np.float32(0.0)
                total = sum_loop(weights)
                if not total > 0:
                    return place - first
                logits[place, drafted[place - 1]] = np.float32(-np.inf)
        at = inverse_cdf_loop(weights, total, uniform(seed, DRAFT, start, place))
        drafted[place] = list.ids[at] if at < F else list.own_ids[b, at - F]
        lse[place] = np.log(total)
    return most


def children_numba(scores, b, list, temperature, top_k, top_p, seed, start, first, most, replaced, drafted, logits,
                   lse) -> int:
    return children_loop(scores, b, list, temperature, top_k, top_p, seed, start, first, most, replaced, drafted, logits,
                         lse)


CHILDREN = {"reference": children_reference, "numba": children_numba}
