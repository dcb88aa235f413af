"""The distributions that are sampled from beyond top-k and top-p, each filter after the one before, in transformers' order.

    scores       [V] float32    in place: scores / temperature, -inf where a filter removed the token
    temperature  float > 0
    top_h        float          keep the most probable tokens, at most 100, whose entropy stays below top_h of those tokens'
                                entropy (Potraghloo et al. 2025); 0: off
    top_k, top_p                as in top_k_top_p.py
    min_p        float          keep tokens of at least min_p times the largest probability (Nguyen et al. 2024); 0: off
    typical_p    float          keep the tokens whose information is nearest to the entropy, with this probability in all
                                (Meister et al. 2022); 1: off
    epsilon      float          keep tokens of at least this probability (Hewitt et al. 2022); 0: off
    eta          float          the same with min(eta, sqrt(eta) e^-entropy) (Hewitt et al. 2022, eq. 4); 0: off
    kept         int            every filter but top-h keeps at least so many of the most probable tokens
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.core.argmax import largest_loop
from foredraft.kernels.core.backend import njit
from foredraft.kernels.sampling.top_k_top_p import warp_loop, warp_reference

# top-h looks at no more tokens than this, as transformers does.
TOP_H_TOKENS = 100


def _probabilities(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores.astype(np.float64) - float(scores.max()))
    return weights / weights.sum()


def _entropy(p: np.ndarray) -> float:
    return -sum(value * math.log(value) for value in p.tolist() if value > 0)


def _least_kept(scores: np.ndarray, kept: int) -> float:
    """The score of the `kept`-th most probable token."""
    return float(np.sort(scores)[-min(kept, len(scores))])


def truncations_reference(scores, temperature, top_h, top_k, top_p, min_p, typical_p, epsilon, eta,
                          kept=1) -> None:
    scores /= np.float32(temperature)
    if top_h > 0:
        order = np.argsort(-scores, kind="stable")[:TOP_H_TOKENS]
        p = _probabilities(scores[order])
        most, reached = top_h * _entropy(p), 0.0
        chosen = [order[0]]
        for token, value in zip(order.tolist(), p.tolist(), strict=True):
            reached -= value * math.log(value) if value > 0 else 0.0
            if reached <= most:
                chosen.append(token)
        removed = np.ones(len(scores), np.bool_)
        removed[chosen] = False
        scores[removed] = -np.inf
    if top_k > 0 or top_p < 1:
        weights = np.empty_like(scores)
        warp_reference(scores, 1.0, max(top_k, kept) if top_k > 0 else 0, top_p, weights)
        scores[(weights == 0) & (scores < _least_kept(scores, kept))] = -np.inf
    if min_p > 0:
        p = _probabilities(scores)
        scores[(p < min_p * p.max()) & (scores < _least_kept(scores, kept))] = -np.inf
    if typical_p < 1:
        p = _probabilities(scores)
        entropy = _entropy(p)
        distance = {token: abs(-math.log(p[token]) - entropy) for token in range(len(p)) if p[token] > 0}
        order, reached, last = sorted(distance, key=lambda token: (distance[token], token)), 0.0, None
        for count, last in enumerate(order):
            reached += p[last]
            if reached >= typical_p and count + 1 >= kept:
                break
        scores[[token for token in range(len(p)) if distance.get(token, math.inf) > distance[last]]] = -np.inf
    if epsilon > 0:
        p = _probabilities(scores)
        scores[(p < epsilon) & (scores < _least_kept(scores, kept))] = -np.inf
    if eta > 0:
        p = _probabilities(scores)
        least = min(eta, math.sqrt(eta) * math.exp(-_entropy(p)))
        scores[(p < least) & (scores < _least_kept(scores, kept))] = -np.inf


@njit()
def _softmax(scores, p):
    """Write the probabilities [V] float64; returns their entropy."""
    top, total, moment = np.float64(largest_loop(scores)), 0.0, 0.0
    for i in range(scores.shape[0]):
        p[i] = 0.0
        if scores[i] > -np.inf:
            value = np.float64(scores[i]) - top
            p[i] = np.exp(value)
            total += p[i]
            moment += p[i] * value
    for i in range(scores.shape[0]):
        p[i] /= total
    return np.log(total) - moment / total


@njit()
def _least_kept_loop(scores, kept):
    if kept == 1:
        return largest_loop(scores)
    return np.sort(scores)[max(0, scores.shape[0] - kept)]


@njit()
def _remove_below(scores, p, least, kept):
    """Remove what is less probable than `least`, but never the `kept` most probable."""
    largest = _least_kept_loop(scores, kept)
    for i in range(scores.shape[0]):
        if p[i] < least and scores[i] < largest:
            scores[i] = np.float32(-np.inf)


@njit()
def _top_h(scores, top_h):
    order = np.argsort(-scores, kind="mergesort")[:TOP_H_TOKENS]
    values = scores[order]
    p = np.empty(values.shape[0])
    most, reached = top_h * _softmax(values, p), 0.0
    scores[:] = np.float32(-np.inf)
    scores[order[0]] = values[0]
    for j in range(values.shape[0]):
        reached -= p[j] * np.log(p[j]) if p[j] > 0 else 0.0
        if reached <= most:
            scores[order[j]] = values[j]


@njit()
def _typical(scores, p, typical_p, kept):
    entropy = _softmax(scores, p)
    distance = np.empty(p.shape[0])
    for i in range(p.shape[0]):
        distance[i] = abs(-np.log(p[i]) - entropy) if p[i] > 0 else np.inf
    reached, farthest, count = 0.0, np.inf, 0
    for i in np.argsort(distance, kind="mergesort"):
        if p[i] > 0:
            farthest = distance[i]
            reached += p[i]
            count += 1
        if reached >= typical_p and count >= kept:
            break
    for i in range(p.shape[0]):
        if distance[i] > farthest:
            scores[i] = np.float32(-np.inf)


@njit()
def truncations_numba(scores, temperature, top_h, top_k, top_p, min_p, typical_p, epsilon, eta, kept):
    V, divisor = scores.shape[0], np.float32(temperature)
    for i in range(V):
        scores[i] = scores[i] / divisor
    if top_h > 0:
        _top_h(scores, top_h)
    if top_k > 0 or top_p < 1:
        weights = np.empty(V, np.float32)
        warp_loop(scores, np.float32(1.0), np.int64(max(top_k, kept) if top_k > 0 else 0), np.float32(top_p), weights)
        least = _least_kept_loop(scores, kept)
        for i in range(V):
            if weights[i] == 0 and scores[i] < least:
                scores[i] = np.float32(-np.inf)
    p = np.empty(V)
    if min_p > 0:
        _softmax(scores, p)
        _remove_below(scores, p, min_p * p.max(), kept)
    if typical_p < 1:
        _typical(scores, p, typical_p, kept)
    if epsilon > 0:
        _softmax(scores, p)
        _remove_below(scores, p, epsilon, kept)
    if eta > 0:
        entropy = _softmax(scores, p)
        _remove_below(scores, p, min(eta, np.sqrt(eta) * np.exp(-entropy)), kept)


TRUNCATIONS = {"reference": truncations_reference, "numba": truncations_numba}
