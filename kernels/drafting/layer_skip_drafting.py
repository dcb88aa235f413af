"""Drafts of the target's own decoder with some sublayers skipped (Draft & Verify, Zhang et al. 2023), in one compiled call.

    tokens       [B, T'] int64, lengths, allowed [B] int64     committed tokens; how many each sequence may draft
    decoder      Decoder: weights, relative bias and caches of the TARGET as in model/decoder.py; kept [L, 3] bool
    vocabulary   vocabulary_head.py;  scale float: of the decoder's output, before the head
    exit         Exit: goal float, the acceptance rate that thresholds are tuned to, 0: never stop early;
                 thresholds, rates [1 + B] float64: of all greedy sequences together, then of each sampled one;
                 asked, proposed [B] int64: num_steps when the sequence last drafted (-1: never), and how many tokens
    num_steps, accepted [B] int64                              the state's: steps so far, drafts accepted in the last step
    temperature, top_k, top_p, seeds [B]; end_token int
    drafted      [B, K] int64, counts [B] int64                out; nothing follows the end token
    logits       [B, K, V] float32, lse [B, K] float64         out for sequences of temperature > 0, else not touched

A draft attends to the full model's keys and values of the committed positions. It writes its own at slots lengths - 1 and
up; the target's next pass overwrites these before it reads them.

A sequence stops drafting when the largest probability of a distribution is below its threshold (section 3.3). Whether
x_i+1 is drafted depends only on q_1 .. q_i and x_1 .. x_i, so the output's distribution stays the target's. After each step
in which a sequence drafted, its threshold moves by STEP / 10 towards `goal`. Greedy sequences share one threshold over all
requests, since no threshold changes their output; a sampled sequence starts anew, so that its seed alone decides.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.sum_of_exp import sum_of_exp_loop
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.drafting.vocabulary_head import (
    sample_draft_loop,
    sample_draft_reference,
    vocabulary_head_loop,
    vocabulary_head_reference,
)
from foredraft.kernels.model.decoder import decoder_reference, embed_loop, layers_loop
from foredraft.kernels.model.norm import norm_loop

# The paper's: weight of the previous value in the acceptance rate and in the threshold; the threshold's step.
KEEP_RATE, KEEP_THRESHOLD, STEP = 0.5, 0.9, 0.01


class Decoder(NamedTuple):
    embedding: np.ndarray
    norms: np.ndarray
    final_norm: np.ndarray
    qkv: np.ndarray
    self_out: np.ndarray
    cross_q: np.ndarray
    cross_out: np.ndarray
    ff_in: np.ndarray
    ff_out: np.ndarray
    bias: np.ndarray
    k: np.ndarray
    v: np.ndarray
    pages_k: np.ndarray
    pages_v: np.ndarray
    table: np.ndarray
    sources: np.ndarray
    activation: int
    gated: bool
    epsilon: float
    kept: np.ndarray


class Exit(NamedTuple):
    goal: float
    thresholds: np.ndarray
    rates: np.ndarray
    asked: np.ndarray
    proposed: np.ndarray


def adapt_reference(exit, num_steps, accepted, temperature) -> None:
    for b in range(len(num_steps)):
        slot = 0 if temperature[b] == 0 else b + 1
        if exit.goal > 0 and exit.asked[b] >= 0 and num_steps[b] == exit.asked[b] + 1 and exit.proposed[b] > 0:
            rate = KEEP_RATE * exit.rates[slot] + (1 - KEEP_RATE) * accepted[b] / exit.proposed[b]
            step = STEP if rate <= exit.goal else -STEP
            exit.rates[slot] = rate
            moved = exit.thresholds[slot] + (1 - KEEP_THRESHOLD) * step
            exit.thresholds[slot] = min(max(moved, 0.0), 1.0)


def draft_reference(tokens, lengths, allowed, decoder, vocabulary, scale, exit, num_steps, accepted, temperature, top_k,
                    top_p, seeds, end_token, drafted, counts, logits, lse) -> None:
    adapt_reference(exit, num_steps, accepted, temperature)
    counts[:] = 0
    B, K = drafted.shape
    going = allowed > 0
    for i in range(K):
        going &= i < allowed
        sequences = np.flatnonzero(going)
        if not len(sequences):
            break
        positions = np.full((B, 1), -1)
        positions[sequences, 0] = lengths[sequences] - 1 + i
        inputs = np.zeros((B, 1), np.int64)
        inputs[sequences, 0] = tokens[sequences, lengths[sequences] - 1] if i == 0 else drafted[sequences, i - 1]
        hidden = np.zeros((B, 1, decoder.norms.shape[2]), np.float32)
        decoder_reference(inputs, positions, np.full((B, 1), -1), *decoder, hidden)
        scores = np.zeros((len(sequences), len(vocabulary.tokens) + vocabulary.own_tokens.shape[1]), np.float32)
        vocabulary_head_reference(hidden[sequences, 0] * np.float32(scale), sequences, vocabulary,
                                  np.zeros((len(sequences), 0), np.float32), scores)
        sample_draft_reference(scores, sequences, vocabulary, temperature, top_k, top_p, seeds, lengths, i, drafted, logits,
                               lse)
        for j, b in enumerate(sequences):
            counts[b] = i + 1
            known = scores[j, : len(vocabulary.tokens) + vocabulary.own_counts[b]].astype(np.float64)
            total = math.exp(lse[b, i]) if temperature[b] > 0 else sum(np.exp(known - max(known)))
            slot = 0 if temperature[b] == 0 else b + 1
            going[b] = drafted[b, i] != end_token and (exit.goal == 0 or 1 / total >= exit.thresholds[slot])
    exit.asked[: len(num_steps)] = num_steps
    exit.proposed[: len(num_steps)] = counts


@njit()
def _adapt_loop(exit, num_steps, accepted, temperature):
    for b in range(num_steps.shape[0]):
        slot = 0 if temperature[b] == 0 else b + 1
        if exit.goal > 0 and exit.asked[b] >= 0 and num_steps[b] == exit.asked[b] + 1 and exit.proposed[b] > 0:
            rate = KEEP_RATE * exit.rates[slot] + (1 - KEEP_RATE) * accepted[b] / exit.proposed[b]
            step = STEP if rate <= exit.goal else -STEP
            exit.rates[slot] = rate
            exit.thresholds[slot] = min(max(exit.thresholds[slot] + (1 - KEEP_THRESHOLD) * step, 0.0), 1.0)


@njit()
def _draft_loop(tokens, lengths, allowed, decoder, vocabulary, scale, exit, num_steps, accepted, temperature, top_k, top_p,
                seeds, end_token, drafted, counts, logits, lse, threads):
    B, K = drafted.shape
    C, F = decoder.norms.shape[2], vocabulary.tokens.shape[0]
    d = decoder
    _adapt_loop(exit, num_steps, accepted, temperature)
    going = allowed > 0
    counts[:] = 0
    sequences, inputs, first_query = np.empty(B, np.int64), np.empty(B, np.int64), np.zeros(B, np.int64)
    positions, parents = np.full((B, 1), -1), np.full((B, 1), -1)
    x, normed = np.empty((B, C), np.float32), np.empty((B, C), np.float32)
    scores, nothing = np.empty((B, F + vocabulary.own_tokens.shape[1]), np.float32), np.empty((B, 0), np.float32)
    no_distribution, no_lse = np.empty(0, np.float32), np.empty(0, np.float64)
    for i in range(K):
        n = 0
        for b in range(B):
            going[b] = going[b] and i < allowed[b]
            positions[b, 0] = lengths[b] - 1 + i if going[b] else -1
            if going[b]:
                sequences[n] = b
                inputs[n] = drafted[b, i - 1] if i > 0 else tokens[b, lengths[b] - 1]
                n += 1
        if n == 0:
            break
        embed_loop(d.embedding, inputs[:n], x[:n])
        layers_loop(x[:n], sequences[:n], first_query[:n], positions, parents, d.norms, d.qkv, d.self_out, d.cross_q,
                    d.cross_out, d.ff_in, d.ff_out, d.bias, d.k, d.v, d.pages_k, d.pages_v, d.table, d.sources, d.activation,
                    d.gated, d.epsilon, d.kept, threads)
        norm_loop(x[:n], d.final_norm, d.epsilon, normed[:n])
        for j in range(n):
            for c in range(C):
                normed[j, c] *= np.float32(scale)
        vocabulary_head_loop(normed[:n], sequences[:n], vocabulary, nothing[:n], scores[:n], threads)
        for j in range(n):
            b = sequences[j]
            distribution, total = no_distribution, no_lse
            if temperature[b] > 0:
                distribution, total = logits[b, i], lse[b, i : i + 1]
            drafted[b, i] = sample_draft_loop(scores[j], b, vocabulary, temperature[b], top_k[b], top_p[b], seeds[b],
                                              lengths[b], i, distribution, total)
            counts[b] = i + 1
            going[b] = drafted[b, i] != end_token
            if exit.goal > 0 and going[b] and i + 1 < K:
                if temperature[b] > 0:
                    going[b] = np.exp(-total[0]) >= exit.thresholds[b + 1]
                else:
                    going[b] = exit.thresholds[0] * sum_of_exp_loop(scores[j, : F + vocabulary.own_counts[b]]) <= 1.0
    for b in range(B):
        exit.asked[b], exit.proposed[b] = num_steps[b], counts[b]


def draft_numba(tokens, lengths, allowed, decoder, vocabulary, scale, exit, num_steps, accepted, temperature, top_k, top_p,
                seeds, end_token, drafted, counts, logits, lse) -> None:
    _draft_loop(tokens, lengths, allowed, decoder, vocabulary, scale, exit, num_steps, accepted, temperature, top_k, top_p,
                seeds, end_token, drafted, counts, logits, lse, get_num_threads())


DRAFT_LAYER_SKIP = {"reference": draft_reference, "numba": draft_numba}
