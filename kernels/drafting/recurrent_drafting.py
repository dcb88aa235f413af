"""Drafts of a recurrent drafter (LSTM or CNN): the unread ids, then a chain or a tree of up to K new ones for all rows, in
one compiled call.

    tokens       [B, T'] int64, lengths, allowed [B] int64     committed ids; how many each row may draft
    embedding    [V, C] float32, or bfloat16 bits as uint16
    cell         Cell: the LSTM (kind 0, lstm.py) or the CNN (kind 1, cnn.py)
    memory       StateCache: by slot, [B, T] int64: fed, the id read there (-1: none), above, the slot it follows; embedded
                 [B, T, C] float32; counts, nodes [B] int64: slots of committed ids, and of the last draft behind them
    pointer, source, list     pointer.py, shortlist.py;  scale float: of the outputs, before the head
    temperature, top_k, top_p, seeds [B]; end_token int
    stops        Stops: confidence.py
    tree         branch.Tree: the nodes to draft, level by level; nothing follows the end token
    drafted, parents [B, K] int64, counts [B] int64            out: each draft and the row it follows (accept.py)
    logits       [B, K, V] float32, lse [B, K] float64         out for rows of temperature > 0, else not touched

States are kept by slot: a committed id's is its position, draft i of a round lies in slot lengths + i. What was accepted is
moved to its position in the next round; what was read stays valid up to the first id that was not committed (unread.py), and
a rejection costs nothing. A row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foredraft.kernels.core.backend import get_num_threads, njit
from foredraft.kernels.drafting.causal_conv import cnn_loop
from foredraft.kernels.drafting.copy_attention import copy_attention_loop
from foredraft.kernels.drafting.draft_stopping import begin_loop, weigh_loop
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
    fed: np.ndarray
    above: np.ndarray
    embedded: np.ndarray
    counts: np.ndarray
    nodes: np.ndarray


@njit()
def embed_normed_loop(embedding, token, ones, out):
    """The normed embedding of an id into out [1, C]."""
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
def _read(ids, rows, at, embedding, cell, memory, threads):
    """Take ids [n] in at their slots."""
    n, C = ids.shape[0], embedding.shape[1]
    ones = np.ones(C, np.float32)
    x = np.empty((n, C), np.float32)
    for i in range(n):
        b, t = rows[i], at[i]
        embed_normed_loop(embedding, ids[i], ones, x[i : i + 1])
        memory.embedded[b, t] = x[i]
        memory.fed[b, t] = ids[i]
    if cell.kind == LSTM:
        lstm_loop(x, rows, at, memory.above, cell.first, cell.first_bias, cell.rest, cell.rest_bias, cell.h, cell.c,
                  threads)
    else:
        cnn_loop(x, rows, at, memory.above, cell.first, cell.first_bias, cell.rest, cell.rest_bias, cell.dilations, cell.h,
                 threads)


@njit()
def _look(rows, at, cell, memory, pointer, source, scale, copied, threads):
    """The head's inputs [n, C] after the ids at `at`; copied [n, S] is written."""
    n, C, U = rows.shape[0], memory.embedded.shape[2], cell.h.shape[3]
    ids = (pointer.query.shape[1] - U) // C
    query = np.zeros((n, U + ids * C), np.float32)
    mixed = np.empty((n, pointer.gain.shape[0]), np.float32)
    out = np.empty((n, C), np.float32)
    for i in range(n):
        b, t = rows[i], at[i]
        state = cell.h[b, t, cell.h.shape[2] - 1]
        query[i, :U] = state
        seen = t
        for back in range(ids):
            if seen >= 0:
                query[i, U + back * C : U + (back + 1) * C] = memory.embedded[b, seen]
                seen = memory.above[b, seen]
        mixed[i, :U] = state
        mixed[i, mixed.shape[1] - C :] = memory.embedded[b, t]
    copy_attention_loop(query, mixed, rows, pointer, source, out, copied, threads)
    for i in range(n):
        for c in range(C):
            out[i, c] *= scale
    return out


@njit()
def _settle(b, tokens, length, cell, memory):
    """Move the states of the last draft's ids that were committed to their positions."""
    base, end = memory.counts[b] - 1, memory.counts[b] + memory.nodes[b]
    at, position = base, base + 1
    while position < length:
        slot = at + 1
        while slot < end and not (memory.above[b, slot] == at and memory.fed[b, slot] == tokens[position]):
            slot += 1
        if slot >= end:
            break
        if slot != position:
            memory.fed[b, position] = memory.fed[b, slot]
            memory.embedded[b, position] = memory.embedded[b, slot]
            cell.h[b, position], cell.c[b, position] = cell.h[b, slot], cell.c[b, slot]
        at, position = slot, position + 1
    for slot in range(base + 1, end):
        memory.above[b, slot] = slot - 1
    memory.counts[b], memory.nodes[b] = position, 0


@njit()
def _draft_loop(tokens, lengths, allowed, embedding, cell, memory, pointer, source, list, scale, temperature, top_k, top_p,
                seeds, end_token, stops, tree, drafted, parents, counts, logits, lse, threads):
    B, N = drafted.shape[0], min(tree.parents.shape[0], drafted.shape[1])
    rows, at, ids = np.empty(B * (N + 1), np.int64), np.empty(B * (N + 1), np.int64), np.empty(B * (N + 1), np.int64)
    unread = np.zeros(B, np.int64)
    for b in range(B):
        if memory.nodes[b] > 0:
            _settle(b, tokens[b], lengths[b], cell, memory)
    num_uncached_loop(tokens, lengths, memory.fed, memory.counts, unread)
    longest = 0
    for b in range(B):
        counts[b] = 0
        unread[b] = unread[b] if allowed[b] > 0 else 0
        if allowed[b] > 0:
            begin_loop(stops, b)
        longest = max(longest, unread[b])
    for turn in range(longest):
        n = 0
        for b in range(B):
            if turn < unread[b]:
                rows[n], at[n] = b, lengths[b] - unread[b] + turn
                ids[n] = tokens[b, at[n]]
                memory.counts[b] = lengths[b]
                n += 1
        _read(ids[:n], rows[:n], at[:n], embedding, cell, memory, threads)
    # the row of a round that a node of the tree became, its own first; -1: none, or the end of a text
    row_of = np.full((B, N + 1), -1)
    row_of[:, 0] = 0
    nodes = np.empty(B * (N + 1), np.int64)
    no_distribution, no_lse = np.empty((0, 0), np.float32), np.empty(0, np.float64)
    for level in range(N):
        n = 0
        for b in range(B):
            for node in range(N + 1):
                if row_of[b, node] < 0 or (0 if node == 0 else tree.depths[node - 1]) != level:
                    continue
                for child in range(node, min(N, allowed[b])):
                    if tree.parents[child] == node:
                        rows[n], nodes[n], at[n] = b, node, lengths[b] - 1 + row_of[b, node]
                        n += 1
                        break
        if n == 0:
            break
        if level > 0:
            for j in range(n):
                ids[j] = drafted[rows[j], row_of[rows[j], nodes[j]] - 1]
            _read(ids[:n], rows[:n], at[:n], embedding, cell, memory, threads)
        copied = np.empty((n, list.places.shape[1]), np.float32)
        scores = np.empty((n, list.ids.shape[0] + list.own_ids.shape[1]), np.float32)
        x = _look(rows[:n], at[:n], cell, memory, pointer, source, np.float32(scale), copied, threads)
        vocabulary_head_loop(x, rows[:n], list, copied, scores, threads)
        for j in range(n):
            b, node, first = rows[j], nodes[j], counts[rows[j]]
            most = 0
            for child in range(node, min(N, allowed[b])):
                most += tree.parents[child] == node
            distribution, total = no_distribution, no_lse
            if temperature[b] > 0:
                distribution, total = logits[b], lse[b]
            # a greedy distribution is weighed before its ids are taken from the scores, a sampled one by its sum
            own, sampled = list.ids.shape[0] + list.own_counts[b], temperature[b] > 0
            taken, more = True, True
            if not sampled:
                taken, more = weigh_loop(stops, b, first, scores[j, :own], False, no_lse)
            found = children_loop(scores[j], b, list, temperature[b], top_k[b], top_p[b], seeds[b], lengths[b], first, most,
                                  tree.replaced, drafted[b], distribution, total)
            if sampled:
                taken, more = weigh_loop(stops, b, first, scores[j, :own], True, total[first : first + 1])
            if not taken:
                found = 0
            for child in range(node, min(N, allowed[b])):
                i = counts[b]
                if tree.parents[child] == node and i < first + found:
                    parents[b, i] = row_of[b, node]
                    memory.above[b, lengths[b] + i], memory.fed[b, lengths[b] + i] = at[j], -1
                    row_of[b, child + 1] = i + 1 if more and drafted[b, i] != end_token else -1
                    counts[b] = i + 1
    for b in range(B):
        memory.nodes[b] = counts[b]


def draft_numba(tokens, lengths, allowed, embedding, cell, memory, pointer, source, list, scale, temperature, top_k, top_p,
                seeds, end_token, stops, tree, drafted, parents, counts, logits, lse) -> None:
    _draft_loop(tokens, lengths, allowed, embedding, cell, memory, pointer, source, list, scale, temperature, top_k, top_p,
                seeds, end_token, stops, tree, drafted, parents, counts, logits, lse, get_num_threads())
