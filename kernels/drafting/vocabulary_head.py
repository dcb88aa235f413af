"""A drafter's head over the ids that a row may draft: a list for all rows, and the ids of the row's own source.

    x            [n, C] float32         scaled outputs of the drafter
    rows         [n] int64              which sequence each is
    list         VocabularyHead: ids [F] int64 and their rows of the head [F/16, C, 16] (packed as in linear.py, any storage),
                 own_ids [B, X], own_head [B, X/16, C, 16], own_counts [B]: those of a source that the list lacks,
                 places [B, S] int64: where each source position's id stands in [ids ; own_ids]
    copied       [n, S'] float32        added to the logits at `places` (pointer.py); S' = 0 adds nothing
    scores       [n, F + X] float32     out; only the first F + own_counts[row] have a meaning

Ids outside the list have probability 0: a draft's distribution is lossless whatever it leaves out. The whole head is the list of
all ids, with X = 0.

`pick` then takes the argmax (temperature 0) or draws from the distribution (distribution.py), and writes that distribution over the vocabulary:
drafted [B, K] int64, logits [B, K, V] float32, lse [B, K] float64 at [row, offset]; keys and distribution as in sample.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop, largest_loop
from foredraft.kernels.core.backend import get_num_threads, njit
from foredraft.kernels.core.gemm_microkernel import LANES
from foredraft.kernels.core.philox import DRAFT, uniform
from foredraft.kernels.model.linear import SCALE_ROWS, linear_loop, linear_reference, linear_serial
from foredraft.kernels.sampling.sample import sample_reference
from foredraft.kernels.sampling.top_k_top_p import inverse_cdf_loop, warp_loop


class VocabularyHead(NamedTuple):
    ids: np.ndarray
    head: np.ndarray
    own_ids: np.ndarray
    own_head: np.ndarray
    own_counts: np.ndarray
    places: np.ndarray


def take_outputs(packed: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The outputs `ids` [n] of a packed or quantised matrix [N/16, K, 16] as one [ceil(n / 16), K, 16] of the same kind."""
    block, lane = ids // LANES, ids % LANES
    K = packed.shape[1] - (SCALE_ROWS if packed.dtype == np.int8 else 0)
    padded = np.zeros((-(-len(ids) // LANES) * LANES, K), packed.dtype)
    padded[: len(ids)] = packed[block, :K, lane]
    taken = np.ascontiguousarray(padded.reshape(-1, LANES, K).transpose(0, 2, 1))
    if packed.dtype != np.int8:
        return taken
    scale = np.ones(len(padded), np.float32)
    scale[: len(ids)] = np.ascontiguousarray(packed[block, K:]).reshape(len(ids), -1).view(np.float32)[
        np.arange(len(ids)), lane]
    return np.concatenate((taken, scale.view(np.int8).reshape(-1, SCALE_ROWS, LANES)), 1)


def vocabulary_head_reference(x, rows, list, copied, scores) -> None:
    F = len(list.ids)
    scores[:, :F] = linear_reference(x, list.head, F)
    for i, b in enumerate(rows):
        own = int(list.own_counts[b])
        scores[i, F : F + own] = linear_reference(x[i : i + 1], list.own_head[b], own)[0] if own else []
        for s in range(copied.shape[1]):
            if copied[i, s] > 0:
                scores[i, list.places[b, s]] += copied[i, s]


@njit()
def vocabulary_head_loop(x, rows, list, copied, scores, threads):
    F = list.ids.shape[0]
    common = scores[:, :F]
    linear_loop(x, list.head, common, threads)
    for i in range(x.shape[0]):
        b = rows[i]
        own = list.own_counts[b]
        if own > 0:
            linear_serial(x[i : i + 1], list.own_head[b], scores[i : i + 1, F : F + own], 0, (own + LANES - 1) // LANES)
        for s in range(copied.shape[1]):
            if copied[i, s] > 0:
                scores[i, list.places[b, s]] += copied[i, s]


def vocabulary_head_numba(x, rows, list, copied, scores) -> None:
    vocabulary_head_loop(x, rows, list, copied, scores, get_num_threads())


@njit()
def sample_draft_loop(scores, b, list, temperature, top_k, top_p, seed, start, offset, processed, lse):
    """The id that row b drafts from scores [F + X]; above temperature 0 its distribution goes to processed [V] and lse [1]."""
    F = list.ids.shape[0]
    scores = scores[: F + list.own_counts[b]]
    if temperature == 0:
        at = argmax_loop(scores)
    else:
        weights = np.empty(scores.shape[0], np.float32)
        total = warp_loop(scores, temperature, top_k, top_p, weights)
        at = inverse_cdf_loop(weights, total, uniform(seed, DRAFT, start, offset))
        lse[0] = np.log(total)
        top, rate = largest_loop(scores), np.float32(1.0 / np.float64(temperature))
        processed[:] = np.float32(-np.inf)
        for j in range(scores.shape[0]):
            if weights[j] > 0:
                processed[list.ids[j] if j < F else list.own_ids[b, j - F]] = (scores[j] - top) * rate
    return list.ids[at] if at < F else list.own_ids[b, at - F]


def sample_draft_reference(scores, rows, list, temperature, top_k, top_p, seeds, starts, offset, drafted, logits,
                           lse) -> None:
    for i, b in enumerate(rows):
        own = int(list.own_counts[b])
        ids = np.concatenate((list.ids, list.own_ids[b, :own]))
        token, processed, total = np.zeros(1, np.int64), np.empty((1, len(ids)), np.float32), np.zeros(1)
        distribution = (temperature[b : b + 1], top_k[b : b + 1], top_p[b : b + 1], seeds[b : b + 1], starts[b : b + 1])
        sample_reference(scores[i : i + 1, : len(ids)], *distribution, offset, token, processed, total)
        drafted[b, offset] = ids[token[0]]
        if temperature[b] > 0:
            logits[b, offset] = -np.inf
            logits[b, offset, ids] = processed[0]
            lse[b, offset] = total[0]


@njit()
def _sample_draft_sequences(scores, rows, list, temperature, top_k, top_p, seeds, starts, offset, drafted, logits, lse):
    no_distribution, no_lse = np.empty(0, np.float32), np.empty(0, np.float64)
    for i in range(rows.shape[0]):
        b = rows[i]
        distribution, total = no_distribution, no_lse
        if temperature[b] > 0:
            distribution, total = logits[b, offset], lse[b, offset : offset + 1]
        drafted[b, offset] = sample_draft_loop(scores[i], b, list, temperature[b], top_k[b], top_p[b], seeds[b], starts[b],
                                               offset, distribution, total)


def sample_draft_numba(scores, rows, list, temperature, top_k, top_p, seeds, starts, offset, drafted, logits, lse) -> None:
    _sample_draft_sequences(scores, rows, list, temperature, top_k, top_p, seeds, starts, offset, drafted, logits, lse)


SAMPLE_DRAFT = {"reference": sample_draft_reference, "numba": sample_draft_numba}
VOCABULARY_HEAD = {"reference": vocabulary_head_reference, "numba": vocabulary_head_numba}
