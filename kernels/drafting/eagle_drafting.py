"""Drafts of a head on the target's features (engine/drafters/neural/eagle_head.py): up to K new ids for all rows, in one compiled call.

    tokens       [B, T'] int64, lengths, allowed [B] int64     committed ids; how many each row may draft
    hidden       [B, C] float32                                the target's state that produced the last committed id
    embedding    [V, C] float32, or bfloat16 bits as uint16
    pointer, source, list     pointer.py, shortlist.py;  scale float: of the outputs, before the head
    temperature, top_k, top_p, seeds [B]; end_token int
    stops        Stops: confidence.py
    features     [B, K, C] float32                             out: the predicted state that each draft was drawn from
    drafted      [B, K] int64, counts [B] int64                out; a row stops after the end token
    logits       [B, K, V] float32, lse [B, K] float64         out for rows of temperature > 0, else not touched

Draft i reads the state before it, the target's for i = 0 and its own prediction from then on, and the latest ids. Nothing
is kept from round to round. A row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import get_num_threads, njit
from foredraft.kernels.drafting.copy_attention import copy_attention_loop, copy_attention_reference
from foredraft.kernels.drafting.draft_stopping import begin_loop, begin_reference, weigh_loop, weigh_reference
from foredraft.kernels.drafting.recurrent_drafting import EPSILON, embed_normed_loop
from foredraft.kernels.drafting.vocabulary_head import (
    sample_draft_loop,
    sample_draft_reference,
    vocabulary_head_loop,
    vocabulary_head_reference,
)
from foredraft.kernels.model.linear import widen
from foredraft.kernels.model.norm import norm_loop, norm_reference


def draft_reference(tokens, lengths, allowed, hidden, embedding, pointer, source, list, scale, temperature, top_k, top_p,
                    seeds, end_token, stops, features, drafted, counts, logits, lse) -> None:
    K, C = drafted.shape[1], embedding.shape[1]
    ones, places = np.ones(C, np.float32), widen(pointer.query).shape[1] // C - 1
    counts[:] = 0
    for b in np.flatnonzero(allowed > 0):
        one, before, ids = np.array([b]), hidden[b : b + 1], tokens[b, : lengths[b]].tolist()
        begin_reference(stops, b)
        for i in range(int(allowed[b])):
            latest = np.zeros((places, C), np.float32)
            recent = ids[: -places - 1 : -1]
            latest[: len(recent)] = norm_reference(widen(embedding)[recent].astype(np.float32), ones, EPSILON)
            state = norm_reference(before, ones, EPSILON)
            query = np.concatenate((state, latest.reshape(1, -1)), 1)
            mixed = np.zeros((1, len(pointer.gain)), np.float32)
            mixed[:, :C], mixed[:, -C:] = state, latest[:1]
            out, copied = np.empty((1, C), np.float32), np.zeros((1, list.places.shape[1]), np.float32)
            copy_attention_reference(query, mixed, one, pointer, source, out, copied)
            features[b, i], before = out[0], out
            scores = np.zeros((1, len(list.ids) + list.own_ids.shape[1]), np.float32)
            vocabulary_head_reference(out * np.float32(scale), one, list, copied, scores)
            sample_draft_reference(scores, one, list, temperature, top_k, top_p, seeds, lengths, i, drafted, logits, lse)
            own, sampled = len(list.ids) + int(list.own_counts[b]), temperature[b] > 0
            taken, more = weigh_reference(stops, b, i, scores[0, :own], sampled, lse[b, i : i + 1] if sampled else lse)
            counts[b] += taken
            ids.append(int(drafted[b, i]))
            if not more or ids[-1] == end_token or i + 1 == K:
                break


@njit()
def _draft_loop(tokens, lengths, allowed, hidden, embedding, pointer, source, list, scale, temperature, top_k, top_p, seeds,
                end_token, stops, features, drafted, counts, logits, lse, threads):
    B, K = drafted.shape
    C = embedding.shape[1]
    places = pointer.query.shape[1] // C - 1
    ones = np.ones(C, np.float32)
    latest, going = np.zeros((B, places, C), np.float32), allowed > 0
    for b in range(B):
        counts[b] = 0
        if going[b]:
            begin_loop(stops, b)
            for back in range(min(places, lengths[b])):
                embed_normed_loop(embedding, tokens[b, lengths[b] - 1 - back], ones, latest[b, back : back + 1])
    rows, before = np.empty(B, np.int64), np.empty((B, C), np.float32)
    state, out = np.empty((B, C), np.float32), np.empty((B, C), np.float32)
    query = np.empty((B, (places + 1) * C), np.float32)
    mixed = np.empty((B, pointer.gain.shape[0]), np.float32)
    copied = np.empty((B, list.places.shape[1]), np.float32)
    scores = np.empty((B, list.ids.shape[0] + list.own_ids.shape[1]), np.float32)
    no_distribution, no_lse = np.empty(0, np.float32), np.empty(0, np.float64)
    for i in range(K):
        n = 0
        for b in range(B):
            if going[b] and i < allowed[b]:
                rows[n] = b
                n += 1
        if n == 0:
            break
        for j in range(n):
            b = rows[j]
            if i == 0:
                before[j] = hidden[b]
            else:
                before[j] = features[b, i - 1]
                for back in range(places - 1, 0, -1):
                    latest[b, back] = latest[b, back - 1]
                embed_normed_loop(embedding, drafted[b, i - 1], ones, latest[b, :1])
        norm_loop(before[:n], ones, EPSILON, state[:n])
        for j in range(n):
            query[j, :C], mixed[j, :C] = state[j], state[j]
            for back in range(places):
                query[j, (back + 1) * C : (back + 2) * C] = latest[rows[j], back]
            mixed[j, mixed.shape[1] - C :] = latest[rows[j], 0]
        copy_attention_loop(query[:n], mixed[:n], rows[:n], pointer, source, out[:n], copied[:n], threads)
        for j in range(n):
            features[rows[j], i] = out[j]
            for c in range(C):
                out[j, c] *= np.float32(scale)
        vocabulary_head_loop(out[:n], rows[:n], list, copied[:n], scores[:n], threads)
        for j in range(n):
            b = rows[j]
            distribution, total = no_distribution, no_lse
            if temperature[b] > 0:
                distribution, total = logits[b, i], lse[b, i : i + 1]
            drafted[b, i] = sample_draft_loop(scores[j], b, list, temperature[b], top_k[b], top_p[b], seeds[b], lengths[b],
                                              i, distribution, total)
            own = list.ids.shape[0] + list.own_counts[b]
            taken, more = weigh_loop(stops, b, i, scores[j, :own], temperature[b] > 0, total)
            counts[b] += taken
            going[b] = more and drafted[b, i] != end_token


def draft_numba(tokens, lengths, allowed, hidden, embedding, pointer, source, list, scale, temperature, top_k, top_p, seeds,
                end_token, stops, features, drafted, counts, logits, lse) -> None:
    _draft_loop(tokens, lengths, allowed, hidden, embedding, pointer, source, list, scale, temperature, top_k, top_p, seeds,
                end_token, stops, features, drafted, counts, logits, lse, get_num_threads())


DRAFT_EAGLE = {"reference": draft_reference, "numba": draft_numba}
