"""Sample one drafted token for each sequence, and return the distribution that it was sampled from.

    logits                     [B, V] float32    the drafter's raw logits
    temperature, top_k, top_p  [B]               as in top_k_top_p.py; temperature 0 takes the argmax (a point mass)
    seeds, starts              [B] int64         the request's seed, the sequence's length at the start of the step
    offset                     int               offset of the token in the draft
    tokens                     [B] int64         out
    processed                  [B, V] float32    out: log weights of the distribution: the largest is 0, -inf where filtered
    lse                        [B] float64       out: their log-sum-exp; token x has probability exp(processed[x] - lse)
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop, largest_loop
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.philox import DRAFT, uniform, uniform_reference
from foredraft.kernels.core.rows import copy_row
from foredraft.kernels.core.workers import get_num_threads, parallel
from foredraft.kernels.sampling.top_k_top_p import inverse_cdf_loop, inverse_cdf_reference, warp_loop, warp_reference


def sample_reference(logits, temperature, top_k, top_p, seeds, starts, offset, tokens, processed, lse) -> None:
    B, V = logits.shape
    weights = np.empty(V, np.float32)
    for b in range(B):
        if temperature[b] == 0:
            tokens[b], processed[b], lse[b] = int(np.argmax(logits[b])), logits[b], 0.0
            continue
        total = warp_reference(logits[b], temperature[b], int(top_k[b]), float(top_p[b]), weights)
        top = float(max(logits[b]))
        for i in range(V):
            processed[b, i] = (float(logits[b, i]) - top) / float(temperature[b]) if weights[i] > 0 else -math.inf
        lse[b] = math.log(total)
        tokens[b] = inverse_cdf_reference(weights, total, uniform_reference(int(seeds[b]), DRAFT, int(starts[b]), offset))


@njit()
def _log_weights(logits, temperature, weights, processed):
    top, rate = largest_loop(logits), np.float32(1.0 / np.float64(temperature))
    for i in range(logits.shape[0]):
        processed[i] = (logits[i] - top) * rate if weights[i] > 0 else np.float32(-np.inf)


@parallel
@njit()
def _sample_sequences(first, last, logits, temperature, top_k, top_p, seeds, starts, offset, tokens, processed, lse):
    V = logits.shape[1]
    for b in range(first, last):
        if temperature[b] == 0:
            tokens[b] = argmax_loop(logits[b])
            copy_row(logits[b], processed[b])
            lse[b] = 0.0
        else:
            weights = np.empty(V, np.float32)
            total = warp_loop(logits[b], temperature[b], top_k[b], top_p[b], weights)
            _log_weights(logits[b], temperature[b], weights, processed[b])
            lse[b] = np.log(total)
            tokens[b] = inverse_cdf_loop(weights, total, uniform(seeds[b], DRAFT, starts[b], offset))


@njit()
def _sample_loop(threads, *arguments):
    _sample_sequences(arguments[0].shape[0], threads, *arguments)


def sample_numba(logits, temperature, top_k, top_p, seeds, starts, offset, tokens, processed, lse) -> None:
    _sample_loop(get_num_threads(), logits, temperature, top_k, top_p, seeds, starts, offset, tokens, processed, lse)


SAMPLE = {"reference": sample_reference, "numba": sample_numba}
