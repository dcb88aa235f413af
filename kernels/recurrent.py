"""Drafts of a recurrent drafter (LSTM or CNN): the unread ids, then up to K new ones for all rows, in one compiled call.

    tokens       [B, T'] int64, lengths, allowed [B] int64     committed ids; how many each row may draft
    embedding    [V, C] float32, or bfloat16 bits as uint16
    cell         Cell: the LSTM (kind 0, lstm.py) or the CNN (kind 1, cnn.py)
    memory       Memory: fed [B, T] int64 ids read at each position, counts [B] how many, embedded [B, T, C] float32
    pointer, source, list     pointer.py, shortlist.py;  scale float: of the outputs, before the head
    temperature, top_k, top_p, seeds [B]; end_token int
    stops        Stops: confidence.py
    drafted      [B, K] int64, counts [B] int64                out; a row stops after the end token
    logits       [B, K, V] float32, lse [B, K] float64         out for rows of temperature > 0, else not touched

States are kept by position: what was read stays valid up to the first id that was not committed (unread.py), and a
rejection costs nothing. A row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foredraft.kernels.backend import get_num_threads, njit
from foredraft.kernels.cnn import cnn_loop
from foredraft.kernels.confidence import begin_loop, weigh_loop
from foredraft.kernels.lstm import lstm_loop
from foredraft.kernels.norm import norm_loop
from foredraft.kernels.pointer import pointer_loop
from foredraft.kernels.shortlist import pick_loop, shortlist_loop
from foredraft.kernels.unread import unread_loop

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


class Memory(NamedTuple):
    fed: np.ndarray
    counts: np.ndarray
    embedded: np.ndarray


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
    """Take ids [n] in at their positions."""
    n, C = ids.shape[0], embedding.shape[1]
    ones = np.ones(C, np.float32)
    x = np.empty((n, C), np.float32)
    for i in range(n):
        b, t = rows[i], at[i]
        embed_normed_loop(embedding, ids[i], ones, x[i : i + 1])
        memory.embedded[b, t] = x[i]
        memory.fed[b, t] = ids[i]
        memory.counts[b] = t + 1
    if cell.kind == LSTM:
        lstm_loop(x, rows, at, cell.first, cell.first_bias, cell.rest, cell.rest_bias, cell.h, cell.c, threads)
    else:
        cnn_loop(x, rows, at, cell.first, cell.first_bias, cell.rest, cell.rest_bias, cell.dilations, cell.h, threads)


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
        for back in range(min(ids, t + 1)):
            query[i, U + back * C : U + (back + 1) * C] = memory.embedded[b, t - back]
        mixed[i, :U] = state
        mixed[i, mixed.shape[1] - C :] = memory.embedded[b, t]
    pointer_loop(query, mixed, rows, pointer, source, out, copied, threads)
    for i in range(n):
        for c in range(C):
            out[i, c] *= scale
    return out


@njit()
def _draft_loop(tokens, lengths, allowed, embedding, cell, memory, pointer, source, list, scale, temperature, top_k, top_p,
                seeds, end_token, stops, drafted, counts, logits, lse, threads):
    B, K = drafted.shape
    rows, at, ids = np.empty(B, np.int64), np.empty(B, np.int64), np.empty(B, np.int64)
    going = allowed > 0
    unread = np.zeros(B, np.int64)
    unread_loop(tokens, lengths, memory.fed, memory.counts, unread)
    longest = 0
    for b in range(B):
        counts[b] = 0
        unread[b] = unread[b] if going[b] else 0
        if going[b]:
            begin_loop(stops, b)
        longest = max(longest, unread[b])
    for turn in range(longest):
        n = 0
        for b in range(B):
            if turn < unread[b]:
                rows[n], at[n] = b, lengths[b] - unread[b] + turn
                ids[n] = tokens[b, at[n]]
                n += 1
        _read(ids[:n], rows[:n], at[:n], embedding, cell, memory, threads)
    copied = np.empty((B, list.places.shape[1]), np.float32)
    scores = np.empty((B, list.ids.shape[0] + list.own_ids.shape[1]), np.float32)
    no_law, no_lse = np.empty(0, np.float32), np.empty(0, np.float64)
    for i in range(K):
        n = 0
        for b in range(B):
            if going[b] and i < allowed[b]:
                rows[n], at[n] = b, lengths[b] - 1 + i
                n += 1
        if n == 0:
            break
        if i > 0:
            for j in range(n):
                ids[j] = drafted[rows[j], i - 1]
            _read(ids[:n], rows[:n], at[:n], embedding, cell, memory, threads)
        x = _look(rows[:n], at[:n], cell, memory, pointer, source, np.float32(scale), copied[:n], threads)
        shortlist_loop(x, rows[:n], list, copied[:n], scores[:n], threads)
        for j in range(n):
            b = rows[j]
            law, total = no_law, no_lse
            if temperature[b] > 0:
                law, total = logits[b, i], lse[b, i : i + 1]
            drafted[b, i] = pick_loop(scores[j], b, list, temperature[b], top_k[b], top_p[b], seeds[b], lengths[b], i, law,
                                      total)
            own = list.ids.shape[0] + list.own_counts[b]
            taken, more = weigh_loop(stops, b, i, scores[j, :own], temperature[b] > 0, total)
            counts[b] += taken
            going[b] = more and drafted[b, i] != end_token


def draft_numba(tokens, lengths, allowed, embedding, cell, memory, pointer, source, list, scale, temperature, top_k, top_p,
                seeds, end_token, stops, drafted, counts, logits, lse) -> None:
    _draft_loop(tokens, lengths, allowed, embedding, cell, memory, pointer, source, list, scale, temperature, top_k, top_p,
                seeds, end_token, stops, drafted, counts, logits, lse, get_num_threads())
