"""Drafts of an EAGLE-style head on the target's hidden states (Li et al. 2024): all sequences in one compiled call.

The head is engine/drafters/neural/eagle_head.py. Draft i reads the hidden state before it, the target's for i = 0 and the
head's own prediction afterwards, and the latest tokens. Nothing is cached from step to step. A result does not depend on
the other sequences.

    tokens       [B, T'] int64, lengths, allowed [B] int64     committed tokens; how many each sequence may draft
    hidden       [B, C] float32                                the target's hidden state that gave the last committed token
    embedding    [V, C] float32, or bfloat16 bits as uint16
    copy, source, vocabulary     copy_attention.py, vocabulary_head.py;  scale float: of the outputs, before the head
    temperature, top_k, top_p, seeds [B]; end_token int
    stop_rule    where a draft ends early (draft_stopping.py)
    features     [B, K, C] float32                             out: the predicted hidden state of each draft token
    drafted      [B, K] int64, counts [B] int64                out; nothing follows the end token
    logits       [B, K, V] float32, lse [B, K] float64         out for sequences of temperature > 0, else not touched
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.rows import copy_row
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.drafting.copy_attention import copy_attention_loop, copy_attention_reference
from foredraft.kernels.drafting.draft_stopping import (
    check_stop_loop,
    check_stop_reference,
    start_draft_loop,
    start_draft_reference,
)
from foredraft.kernels.drafting.recurrent_drafting import EPSILON, embed_normed_loop
from foredraft.kernels.drafting.vocabulary_head import (
    sample_draft_loop,
    sample_draft_reference,
    vocabulary_head_loop,
    vocabulary_head_reference,
)
from foredraft.kernels.model.norm import norm_loop, norm_reference
from foredraft.kernels.model.packing import widen


def draft_reference(tokens, lengths, allowed, hidden, embedding, copy, source, vocabulary, scale, temperature, top_k, top_p,
                    seeds, end_token, stop_rule, features, drafted, counts, logits, lse) -> None:
    K, C = drafted.shape[1], embedding.shape[1]
    ones, E = np.ones(C, np.float32), widen(copy.query).shape[1] // C - 1
    counts[:] = 0
    for b in np.flatnonzero(allowed > 0):
        one, before, text = np.array([b]), hidden[b : b + 1], tokens[b, : lengths[b]].tolist()
        start_draft_reference(stop_rule, b)
        for i in range(int(allowed[b])):
            latest = np.zeros((E, C), np.float32)
            recent = text[: -E - 1 : -1]
            latest[: len(recent)] = norm_reference(widen(embedding)[recent].astype(np.float32), ones, EPSILON)
            state = norm_reference(before, ones, EPSILON)
            query = np.concatenate((state, latest.reshape(1, -1)), 1)
            mixed = np.zeros((1, len(copy.gain)), np.float32)
            mixed[:, :C], mixed[:, -C:] = state, latest[:1]
            out, copied = np.empty((1, C), np.float32), np.zeros((1, vocabulary.source_columns.shape[1]), np.float32)
            copy_attention_reference(query, mixed, one, copy, source, out, copied)
            features[b, i], before = out[0], out
            scores = np.zeros((1, len(vocabulary.tokens) + vocabulary.own_tokens.shape[1]), np.float32)
            vocabulary_head_reference(out * np.float32(scale), one, vocabulary, copied, scores)
            sample_draft_reference(scores, one, vocabulary, temperature, top_k, top_p, seeds, lengths, i, drafted, logits,
                                   lse)
            own, sampled = len(vocabulary.tokens) + int(vocabulary.own_counts[b]), temperature[b] > 0
            taken, more = check_stop_reference(stop_rule, b, i, scores[0, :own], sampled,
                                               lse[b, i : i + 1] if sampled else lse)
            counts[b] += taken
            text.append(int(drafted[b, i]))
            if not more or text[-1] == end_token or i + 1 == K:
                break


@njit()
def _draft_loop(tokens, lengths, allowed, hidden, embedding, copy, source, vocabulary, scale, temperature, top_k, top_p,
                seeds, end_token, stop_rule, features, drafted, counts, logits, lse, threads):
    B, K = drafted.shape
    C = embedding.shape[1]
    E = copy.query.shape[1] // C - 1
    ones = np.ones(C, np.float32)
    latest, going = np.zeros((B, E, C), np.float32), allowed > 0
    for b in range(B):
        counts[b] = 0
        if going[b]:
            start_draft_loop(stop_rule, b)
            for back in range(min(E, lengths[b])):
                embed_normed_loop(embedding, tokens[b, lengths[b] - 1 - back], ones, latest[b, back : back + 1])
    sequences, before = np.empty(B, np.int64), np.empty((B, C), np.float32)
    state, out = np.empty((B, C), np.float32), np.empty((B, C), np.float32)
    query = np.empty((B, (E + 1) * C), np.float32)
    mixed = np.empty((B, copy.gain.shape[0]), np.float32)
    copied = np.empty((B, vocabulary.source_columns.shape[1]), np.float32)
    scores = np.empty((B, vocabulary.tokens.shape[0] + vocabulary.own_tokens.shape[1]), np.float32)
    no_distribution, no_lse = np.empty(0, np.float32), np.empty(0, np.float64)
    for i in range(K):
        n = 0
        for b in range(B):
            if going[b] and i < allowed[b]:
                sequences[n] = b
                n += 1
        if n == 0:
            break
        for j in range(n):
            b = sequences[j]
            if i == 0:
                copy_row(hidden[b], before[j])
            else:
                copy_row(features[b, i - 1], before[j])
                for back in range(E - 1, 0, -1):
                    copy_row(latest[b, back - 1], latest[b, back])
                embed_normed_loop(embedding, drafted[b, i - 1], ones, latest[b, :1])
        norm_loop(before[:n], ones, EPSILON, state[:n])
        for j in range(n):
            copy_row(state[j], query[j, :C])
            copy_row(state[j], mixed[j, :C])
            for back in range(E):
                copy_row(latest[sequences[j], back], query[j, (back + 1) * C : (back + 2) * C])
            copy_row(latest[sequences[j], 0], mixed[j, mixed.shape[1] - C :])
        copy_attention_loop(query[:n], mixed[:n], sequences[:n], copy, source, out[:n], copied[:n], threads)
        for j in range(n):
            copy_row(out[j], features[sequences[j], i])
            for c in range(C):
                out[j, c] *= np.float32(scale)
        vocabulary_head_loop(out[:n], sequences[:n], vocabulary, copied[:n], scores[:n], threads)
        for j in range(n):
            b = sequences[j]
            distribution, total = no_distribution, no_lse
            if temperature[b] > 0:
                distribution, total = logits[b, i], lse[b, i : i + 1]
            drafted[b, i] = sample_draft_loop(scores[j], b, vocabulary, temperature[b], top_k[b], top_p[b], seeds[b],
                                              lengths[b], i, distribution, total)
            own = vocabulary.tokens.shape[0] + vocabulary.own_counts[b]
            taken, more = check_stop_loop(stop_rule, b, i, scores[j, :own], temperature[b] > 0, total)
            counts[b] += taken
            going[b] = more and drafted[b, i] != end_token


def draft_numba(tokens, lengths, allowed, hidden, embedding, copy, source, vocabulary, scale, temperature, top_k, top_p,
                seeds, end_token, stop_rule, features, drafted, counts, logits, lse) -> None:
    _draft_loop(tokens, lengths, allowed, hidden, embedding, copy, source, vocabulary, scale, temperature, top_k, top_p,
                seeds, end_token, stop_rule, features, drafted, counts, logits, lse, get_num_threads())


DRAFT_EAGLE = {"reference": draft_reference, "numba": draft_numba}
