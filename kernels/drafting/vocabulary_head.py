"""A drafter's head over its draft vocabulary: tokens for every sequence, and the tokens of the sequence's own source.

    x            [n, C] float32         scaled outputs of the drafter
    sequences    [n] int64              the sequence of each row of x
    vocabulary   VocabularyHead, with packed weights as in model/linear.py, in any storage:
                 tokens [F] int64, head [F/16, C, 16]                   the tokens for every sequence, and their head
                 own_tokens [B, X], own_head [B, X/16, C, 16],
                 own_counts [B]                                         tokens of a source that `tokens` lacks
                 source_columns [B, S] int64                            column of each source position's token
    copied       [n, S'] float32        added to the scores at source_columns (copy_attention.py); S' = 0: nothing
    scores       [n, F + X] float32     out; columns are [tokens ; own_tokens], the first F + own_counts are valid

Tokens outside the draft vocabulary have draft probability 0; verification stays lossless. The full head is the vocabulary
of all tokens, with X = 0.

sample_draft takes the argmax (temperature 0) or samples from the warped distribution (sampling/top_k_top_p.py), and writes
drafted [B, K] int64 and, above temperature 0, logits [B, K, V] float32 and lse [B, K] float64 at [sequence, offset]. Keys
of the noise and the stored distribution are those of sampling/sample.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop, largest_loop
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.gemm_tile import LANES
from foredraft.kernels.core.philox import DRAFT, uniform
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.model.levels import levels_loop
from foredraft.kernels.model.linear import linear_loop, linear_reference, linear_serial
from foredraft.kernels.sampling.sample import sample_reference
from foredraft.kernels.sampling.top_k_top_p import inverse_cdf_loop, warp_loop


class VocabularyHead(NamedTuple):
    tokens: np.ndarray
    head: np.ndarray
    own_tokens: np.ndarray
    own_head: np.ndarray
    own_counts: np.ndarray
    source_columns: np.ndarray


def vocabulary_head_reference(x, sequences, vocabulary, copied, scores) -> None:
    F = len(vocabulary.tokens)
    scores[:, :F] = linear_reference(x, vocabulary.head, F)
    for i, b in enumerate(sequences):
        own = int(vocabulary.own_counts[b])
        scores[i, F : F + own] = linear_reference(x[i : i + 1], vocabulary.own_head[b], own)[0] if own else []
        for s in range(copied.shape[1]):
            if copied[i, s] > 0:
                scores[i, vocabulary.source_columns[b, s]] += copied[i, s]


@njit()
def vocabulary_head_loop(x, sequences, vocabulary, copied, scores, threads):
    F = vocabulary.tokens.shape[0]
    common = scores[:, :F]
    linear_loop(x, vocabulary.head, common, threads)
    for i in range(x.shape[0]):
        b = sequences[i]
        own = vocabulary.own_counts[b]
        if own > 0:
            row = x[i : i + 1]
            linear_serial(row, levels_loop(row, vocabulary.own_head, 1), vocabulary.own_head[b],
                          scores[i : i + 1, F : F + own], 0, (own + LANES - 1) // LANES)
        for s in range(copied.shape[1]):
            if copied[i, s] > 0:
                scores[i, vocabulary.source_columns[b, s]] += copied[i, s]


def vocabulary_head_numba(x, sequences, vocabulary, copied, scores) -> None:
    vocabulary_head_loop(x, sequences, vocabulary, copied, scores, get_num_threads())


@njit()
def sample_draft_loop(scores, b, vocabulary, temperature, top_k, top_p, seed, start, offset, processed, lse):
    """Sample a token of sequence b from scores [F + X]; above temperature 0 write processed [V] and lse [1]."""
    F = vocabulary.tokens.shape[0]
    scores = scores[: F + vocabulary.own_counts[b]]
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
                processed[vocabulary.tokens[j] if j < F else vocabulary.own_tokens[b, j - F]] = (scores[j] - top) * rate
    return vocabulary.tokens[at] if at < F else vocabulary.own_tokens[b, at - F]


def sample_draft_reference(scores, sequences, vocabulary, temperature, top_k, top_p, seeds, starts, offset, drafted, logits,
                           lse) -> None:
    for i, b in enumerate(sequences):
        own = int(vocabulary.own_counts[b])
        tokens = np.concatenate((vocabulary.tokens, vocabulary.own_tokens[b, :own]))
        token, processed, total = np.zeros(1, np.int64), np.empty((1, len(tokens)), np.float32), np.zeros(1)
        distribution = (temperature[b : b + 1], top_k[b : b + 1], top_p[b : b + 1], seeds[b : b + 1], starts[b : b + 1])
        sample_reference(scores[i : i + 1, : len(tokens)], *distribution, offset, token, processed, total)
        drafted[b, offset] = tokens[token[0]]
        if temperature[b] > 0:
            logits[b, offset] = -np.inf
            logits[b, offset, tokens] = processed[0]
            lse[b, offset] = total[0]


@njit()
def _sample_draft_sequences(scores, sequences, vocabulary, temperature, top_k, top_p, seeds, starts, offset, drafted, logits,
                            lse):
    no_distribution, no_lse = np.empty(0, np.float32), np.empty(0, np.float64)
    for i in range(sequences.shape[0]):
        b = sequences[i]
        distribution, total = no_distribution, no_lse
        if temperature[b] > 0:
            distribution, total = logits[b, offset], lse[b, offset : offset + 1]
        drafted[b, offset] = sample_draft_loop(scores[i], b, vocabulary, temperature[b], top_k[b], top_p[b], seeds[b],
                                               starts[b], offset, distribution, total)


def sample_draft_numba(scores, sequences, vocabulary, temperature, top_k, top_p, seeds, starts, offset, drafted, logits,
                       lse) -> None:
    _sample_draft_sequences(scores, sequences, vocabulary, temperature, top_k, top_p, seeds, starts, offset, drafted, logits,
                            lse)


SAMPLE_DRAFT = {"reference": sample_draft_reference, "numba": sample_draft_numba}
VOCABULARY_HEAD = {"reference": vocabulary_head_reference, "numba": vocabulary_head_numba}
