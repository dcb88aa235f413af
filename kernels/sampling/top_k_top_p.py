"""The warped distribution that tokens are sampled from: temperature, then top-k, then top-p, in transformers' order.

    logits       [V] float32
    temperature  float > 0;  top_k int, 0: off;  top_p float in (0, 1], 1: off
    weights      [V] float32    out: unnormalised probabilities, the largest 1; 0 where filtered or below e^-87
    returns      float64        the sum of the weights

top-k keeps every logit that is at least the k-th largest. top-p keeps the smallest set of the most probable tokens whose
probability reaches p (Holtzman et al. 2020); of equal probabilities the lower tokens come first. Target and drafters use
the same function.
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.core.argmax import largest_loop
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.exp import LOWEST, exp32

# Tokens whose weights are summed together before one of them is searched for.
BLOCK = 256


def warp_reference(logits: np.ndarray, temperature: float, top_k: int, top_p: float, weights: np.ndarray) -> float:
    V = len(logits)
    top = float(max(logits))
    floor = float(sorted(logits, reverse=True)[min(top_k, V) - 1]) if top_k > 0 else -math.inf
    scaled = [(float(logit) - top) / float(temperature) for logit in logits]
    weights[:] = [math.exp(value) if value >= LOWEST and logit >= floor else 0.0
                  for value, logit in zip(scaled, logits, strict=True)]
    values = weights.tolist()
    if top_p < 1.0:
        total, before = sum(values), 0.0
        for index in sorted(range(V), key=lambda i: (-values[i], i)):
            value = values[index]
            if before >= top_p * total:
                values[index] = 0.0
            before += value
    weights[:] = values
    return sum(values)


@njit(fastmath={"reassoc", "contract"})
def sum_loop(weights):
    """The sum in float64."""
    total = 0.0
    for i in range(weights.shape[0]):
        total += np.float64(weights[i])
    return total


@njit()
def _filter_top_p(weights, total, top_p):
    """Zero the weights outside the nucleus. Sorts the large weights only, unless these do not reach p."""
    V = weights.shape[0]
    for fraction in (1e-3, 1e-6, 0.0):
        chosen = np.empty(V, np.int64)
        n = 0
        mass = 0.0
        for i in range(V):
            if weights[i] > 0.0 and weights[i] >= fraction:
                chosen[n] = i
                mass += weights[i]
                n += 1
        if mass >= top_p * total or fraction == 0.0:
            break
    candidates = chosen[:n]
    order = np.argsort(-weights[candidates], kind="mergesort")
    kept = np.zeros(n, np.float32)
    before = 0.0
    used = 0
    while used < n and before < top_p * total:
        kept[used] = weights[candidates[order[used]]]
        before += kept[used]
        used += 1
    weights[:] = np.float32(0.0)
    for j in range(used):
        weights[candidates[order[j]]] = kept[j]
    return sum_loop(weights)


@njit(fastmath={"reassoc", "contract"})
def _exponentials(logits, top, floor, rate, weights):
    total = 0.0
    for i in range(logits.shape[0]):
        scaled = (logits[i] - top) * rate
        weight = exp32(scaled)
        weights[i] = weight if scaled >= LOWEST and logits[i] >= floor else np.float32(0.0)
        total += np.float64(weights[i])
    return total


@njit()
def warp_loop(logits, temperature, top_k, top_p, weights):
    V = logits.shape[0]
    floor = np.float32(-np.inf)
    if top_k > 0 and top_k < V:
        floor = np.partition(logits, V - top_k)[V - top_k]
    rate = np.float32(1.0 / np.float64(temperature))
    total = _exponentials(logits, largest_loop(logits), floor, rate, weights)
    if top_p < 1.0:
        total = _filter_top_p(weights, total, np.float64(top_p))
    return total


def inverse_cdf_reference(weights: np.ndarray, total: float, uniform: float) -> int:
    """Sample by inverse CDF: the first token whose cumulative weight exceeds uniform * total."""
    reached, last = 0.0, 0
    for index, weight in enumerate(weights):
        if weight > 0.0:
            reached += float(weight)
            last = index
            if reached > uniform * total:
                return index
    return last


@njit()
def inverse_cdf_loop(weights, total, uniform):
    threshold = uniform * total
    reached = before = 0.0
    block = 0
    for start in range(0, weights.shape[0], BLOCK):
        inside = sum_loop(weights[start : start + BLOCK])
        if inside > 0.0:
            block, before = start, reached
            reached += inside
            if reached > threshold:
                break
    # if rounding leaves no token beyond the threshold: the last one that has weight
    chosen = block
    for i in range(block, min(block + BLOCK, weights.shape[0])):
        if weights[i] > 0.0:
            before += np.float64(weights[i])
            chosen = i
            if before > threshold:
                break
    return chosen
