"""Drafts of a recurrent drafter (LSTM or CNN) for all sequences, without branches or as trees, in one compiled call.

The drafter reads the uncached committed tokens, then drafts up to K tokens a sequence.

    tokens       [B, T'] int64, lengths, allowed [B] int64     committed tokens; how many each sequence may draft
    embedding    [V, C] float32, or bfloat16 bits as uint16
    cell         Cell: the LSTM (kind 0, lstm_cell.py) or the CNN (kind 1, causal_conv.py)
    cache        StateCache: cached_tokens, parents [B, T] int64: the token read in each slot (-1: none), and the slot before
                 it; embedded [B, T, C] float32; counts, nodes [B] int64: slots of committed tokens, and of the last draft
    copy, source, vocabulary     copy_attention.py, vocabulary_head.py;  scale float: of the outputs, before the head
    temperature, top_k, top_p, seeds [B]; end_token int
    stop_rule    where a draft ends early (draft_stopping.py)
    tree         tree_children.Tree: the nodes to draft, level by level; nothing follows the end token
    drafted, parents [B, K] int64, counts [B] int64            out: draft tokens, the query position that each follows
    logits       [B, K, V] float32, lse [B, K] float64         out for sequences of temperature > 0, else not touched

The slot of a committed token is its position; the slot of draft i is lengths + i. Accepted drafts are moved to their
positions in the next step. Cached states are valid up to the first token that was not committed (num_uncached.py), so a
rejection needs no copy. A result does not depend on the other sequences.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.rows import copy_row
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.drafting.causal_conv import cnn_loop
from foredraft.kernels.drafting.copy_attention import copy_attention_loop
from foredraft.kernels.drafting.draft_stopping import check_stop_loop, start_draft_loop
from foredraft.kernels.drafting.lstm_cell import lstm_loop
from foredraft.kernels.drafting.num_uncached import num_uncached_loop
from foredraft.kernels.drafting.tree_children import children_loop
from foredraft.kernels.drafting.vocabulary_head import vocabulary_head_loop
from foredraft.kernels.model.norm import norm_loop

LSTM, CNN = 0, 1
EPSILON = 1e-6


class Cell(NamedTuple):
    kind: int
    first: np.ndarray
    first_bias: np.ndarray
    rest: np.ndarray
    rest_bias: np.ndarray
    dilations: np.ndarray
    h: np.ndarray
    c: np.ndarray


class StateCache(NamedTuple):
    cached_tokens: np.ndarray
    parents: np.ndarray
    embedded: np.ndarray
    counts: np.ndarray
    nodes: np.ndarray


@njit()
def embed_normed_loop(embedding, token, ones, out):
    """Write the normed embedding of a token to out [1, C]."""
    raw = np.empty((1, embedding.shape[1]), np.float32)
    if embedding.itemsize == 2:
        bits = raw.view(np.uint32)
        for c in range(raw.shape[1]):
            bits[0, c] = np.uint32(embedding[token, c]) << np.uint32(16)
    else:
        for c in range(raw.shape[1]):
            raw[0, c] = embedding[token, c]
    norm_loop(raw, ones, EPSILON, out)


@njit()
def _read(new_tokens, sequences, slots, embedding, cell, cache, threads):
    """Read new_tokens [n] into their slots."""
    n, C = new_tokens.shape[0], embedding.shape[1]
    ones = np.ones(C, np.float32)
    x = np.empty((n, C), np.float32)
    for i in range(n):
        b, t = sequences[i], slots[i]
        embed_normed_loop(embedding, new_tokens[i], ones, x[i : i + 1])
        cache.embedded[b, t] = x[i]
        cache.cached_tokens[b, t] = new_tokens[i]
    if cell.kind == LSTM:
        lstm_loop(x, sequences, slots, cache.parents, cell.first, cell.first_bias, cell.rest, cell.rest_bias, cell.h, cell.c,
                  threads)
    else:
        cnn_loop(x, sequences, slots, cache.parents, cell.first, cell.first_bias, cell.rest, cell.rest_bias, cell.dilations,
                 cell.h, threads)


@njit()
def _head_inputs(sequences, slots, cell, cache, copy, source, scale, copied, threads):
    """The head's inputs [n, C] after the tokens in `slots`; writes copied [n, S]."""
    n, C, U = sequences.shape[0], cache.embedded.shape[2], cell.h.shape[3]
    E = (copy.query.shape[1] - U) // C
    query = np.zeros((n, U + E * C), np.float32)
    mixed = np.empty((n, copy.gain.shape[0]), np.float32)
    out = np.empty((n, C), np.float32)
    for i in range(n):
        b, t = sequences[i], slots[i]
        state = cell.h[b, t, cell.h.shape[2] - 1]
        copy_row(state, query[i, :U])
        slot = t
        for back in range(E):
            if slot >= 0:
                copy_row(cache.embedded[b, slot], query[i, U + back * C : U + (back + 1) * C])
                slot = cache.parents[b, slot]
        copy_row(state, mixed[i, :U])
        copy_row(cache.embedded[b, t], mixed[i, mixed.shape[1] - C :])
    copy_attention_loop(query, mixed, sequences, copy, source, out, copied, threads)
    for i in range(n):
        for c in range(C):
            out[i, c] *= scale
    return out


@njit()
def _keep_accepted(b, tokens, length, cell, cache):
    """Move the states of accepted draft tokens to their positions."""
    base, end = cache.counts[b] - 1, cache.counts[b] + cache.nodes[b]
    at, position = base, base + 1
    while position < length:
        slot = at + 1
        while slot < end and not (cache.parents[b, slot] == at and cache.cached_tokens[b, slot] == tokens[position]):
            slot += 1
        if slot >= end:
            break
        if slot != position:
            cache.cached_tokens[b, position] = cache.cached_tokens[b, slot]
            cache.embedded[b, position] = cache.embedded[b, slot]
            cell.h[b, position], cell.c[b, position] = cell.h[b, slot], cell.c[b, slot]
        at, position = slot, position + 1
    for slot in range(base + 1, end):
        cache.parents[b, slot] = slot - 1
    cache.counts[b], cache.nodes[b] = position, 0


@njit()
def _draft_loop(tokens, lengths, allowed, embedding, cell, cache, copy, source, vocabulary, scale, temperature, top_k, top_p,
                seeds, end_token, stop_rule, tree, drafted, parents, counts, logits, lse, threads):
    B, N = drafted.shape[0], min(tree.parents.shape[0], drafted.shape[1])
    sequences, slots, reads = np.empty(B * (N + 1), np.int64), np.empty(B * (N + 1), np.int64), np.empty(B * (N + 1),
                                                                                                         np.int64)
    num_uncached = np.zeros(B, np.int64)
    for b in range(B):
        if cache.nodes[b] > 0:
            _keep_accepted(b, tokens[b], lengths[b], cell, cache)
    num_uncached_loop(tokens, lengths, cache.cached_tokens, cache.counts, num_uncached)
    longest = 0
    for b in range(B):
        counts[b] = 0
        num_uncached[b] = num_uncached[b] if allowed[b] > 0 else 0
        if allowed[b] > 0:
            start_draft_loop(stop_rule, b)
        longest = max(longest, num_uncached[b])
    for step in range(longest):
        n = 0
        for b in range(B):
            if step < num_uncached[b]:
                sequences[n], slots[n] = b, lengths[b] - num_uncached[b] + step
                reads[n] = tokens[b, slots[n]]
                cache.counts[b] = lengths[b]
                n += 1
        _read(reads[:n], sequences[:n], slots[:n], embedding, cell, cache, threads)
    # query position of each tree node (node 0: last committed token); -1: not drafted, or the end token
    position_of = np.full((B, N + 1), -1)
    position_of[:, 0] = 0
    nodes = np.empty(B * (N + 1), np.int64)
    no_distribution, no_lse = np.empty((0, 0), np.float32), np.empty(0, np.float64)
    for level in range(N):
        n = 0
        for b in range(B):
            for node in range(N + 1):
                if position_of[b, node] < 0 or (0 if node == 0 else tree.depths[node - 1]) != level:
                    continue
                for child in range(node, min(N, allowed[b])):
                    if tree.parents[child] == node:
                        sequences[n], nodes[n], slots[n] = b, node, lengths[b] - 1 + position_of[b, node]
                        n += 1
                        break
        if n == 0:
            break
        if level > 0:
            for j in range(n):
                reads[j] = drafted[sequences[j], position_of[sequences[j], nodes[j]] - 1]
            _read(reads[:n], sequences[:n], slots[:n], embedding, cell, cache, threads)
        copied = np.empty((n, vocabulary.source_columns.shape[1]), np.float32)
        scores = np.empty((n, vocabulary.tokens.shape[0] + vocabulary.own_tokens.shape[1]), np.float32)
        x = _head_inputs(sequences[:n], slots[:n], cell, cache, copy, source, np.float32(scale), copied, threads)
        vocabulary_head_loop(x, sequences[:n], vocabulary, copied, scores, threads)
        for j in range(n):
            b, node, first = sequences[j], nodes[j], counts[sequences[j]]
            most = 0
            for child in range(node, min(N, allowed[b])):
                most += tree.parents[child] == node
            distribution, total = no_distribution, no_lse
            if temperature[b] > 0:
                distribution, total = logits[b], lse[b]
            # greedy drafts are stopped by the scores, before children_loop overwrites them; sampled drafts by their lse
            own, sampled = vocabulary.tokens.shape[0] + vocabulary.own_counts[b], temperature[b] > 0
            taken, more = True, True
            if not sampled:
                taken, more = check_stop_loop(stop_rule, b, first, scores[j, :own], False, no_lse)
            num_children = children_loop(scores[j], b, vocabulary, temperature[b], top_k[b], top_p[b], seeds[b], lengths[b],
                                         first, most, tree.replaced, drafted[b], distribution, total)
            if sampled:
                taken, more = check_stop_loop(stop_rule, b, first, scores[j, :own], True, total[first : first + 1])
            if not taken:
                num_children = 0
            for child in range(node, min(N, allowed[b])):
                i = counts[b]
                if tree.parents[child] == node and i < first + num_children:
                    parents[b, i] = position_of[b, node]
                    cache.parents[b, lengths[b] + i], cache.cached_tokens[b, lengths[b] + i] = slots[j], -1
                    position_of[b, child + 1] = i + 1 if more and drafted[b, i] != end_token else -1
                    counts[b] = i + 1
    for b in range(B):
        cache.nodes[b] = counts[b]


def draft_numba(tokens, lengths, allowed, embedding, cell, cache, copy, source, vocabulary, scale, temperature, top_k, top_p,
                seeds, end_token, stop_rule, tree, drafted, parents, counts, logits, lse) -> None:
    _draft_loop(tokens, lengths, allowed, embedding, cell, cache, copy, source, vocabulary, scale, temperature, top_k, top_p,
                seeds, end_token, stop_rule, tree, drafted, parents, counts, logits, lse, get_num_threads())
