"""The law that tokens are drawn from: logits under temperature, then top-k, then top-p, as transformers orders them.

    logits       [V] float32      temperature float > 0; top_k int, 0 is off; top_p float in (0, 1], 1 is off
    weights      [V] float64      out: unnormalised, 0 where cut; the return value is their sum

top-k keeps every logit that is not below the k-th largest; top-p keeps the shortest run of largest probabilities that
reaches p (Holtzman et al. 2020), lower ids first among equals. One law for the target and for drafters alike.
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.backend import njit


def law_reference(logits: np.ndarray, temperature: float, top_k: int, top_p: float, weights: np.ndarray) -> float:
    V = len(logits)
    scaled = [float(logit) / float(temperature) for logit in logits]
    top = max(scaled)
    floor = sorted(scaled, reverse=True)[min(top_k, V) - 1] if top_k > 0 else -math.inf
    values = [math.exp(value - top) if value >= floor else 0.0 for value in scaled]
    if top_p < 1.0:
        whole, before = sum(values), 0.0
        for index in sorted(range(V), key=lambda i: (-values[i], i)):
            value = values[index]
            if before >= top_p * whole:
                values[index] = 0.0
            before += value
    weights[:] = values
    return sum(values)


@njit()
def _cut_top_p(weights, total, top_p):
    """Zero what lies outside the nucleus; sorts only the large weights, and all of them only if it must."""
    V = weights.shape[0]
    largest = weights.max()
    for fraction in (1e-3, 1e-6, 0.0):
        chosen = np.empty(V, np.int64)
        n = 0
        mass = 0.0
        for i in range(V):
            if weights[i] > 0.0 and weights[i] >= largest * fraction:
                chosen[n] = i
                mass += weights[i]
                n += 1
        if mass >= top_p * total or fraction == 0.0:
            break
    candidates = chosen[:n]
    order = np.argsort(-weights[candidates], kind="mergesort")
    kept = np.zeros(n, np.float64)
    before = 0.0
    used = 0
    while used < n and before < top_p * total:
        kept[used] = weights[candidates[order[used]]]
        before += kept[used]
        used += 1
    weights[:] = 0.0
    for j in range(used):
        weights[candidates[order[j]]] = kept[j]
    total = 0.0
    for i in range(V):
        total += weights[i]
    return total


@njit()
def law_loop(logits, temperature, top_k, top_p, weights):
    V = logits.shape[0]
    t = np.float64(temperature)
    top = np.float64(logits.max()) / t
    floor = -np.inf
    if top_k > 0 and top_k < V:
        floor = np.float64(np.partition(logits, V - top_k)[V - top_k]) / t
    total = 0.0
    for i in range(V):
        value = np.float64(logits[i]) / t
        weights[i] = np.exp(value - top) if value >= floor else 0.0
        total += weights[i]
    if top_p < 1.0:
        total = _cut_top_p(weights, total, np.float64(top_p))
    return total


def draw_reference(weights: np.ndarray, total: float, uniform: float) -> int:
    """Inverse CDF: the first id whose cumulative weight exceeds uniform * total."""
    reached, last = 0.0, 0
    for index, weight in enumerate(weights):
        if weight > 0.0:
            reached += float(weight)
            last = index
            if reached > uniform * total:
                return index
    return last


@njit()
def draw_loop(weights, total, uniform):
    threshold = uniform * total
    reached = 0.0
    last = 0
    for i in range(weights.shape[0]):
        if weights[i] > 0.0:
            reached += weights[i]
            last = i
            if reached > threshold:
                return i
    return last
