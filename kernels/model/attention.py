"""Cached attention of decoder query positions: self-attention with T5's relative bias, cross-attention over pages.

    q           [n, H, D] float32        queries of the positions read in this step (T5 does not scale by 1/sqrt(D))
    sequences, queries  [n] int64        sequence b and query position r of each query; a sequence's queries are contiguous
    positions   [B, R] int64             absolute decoder positions; query position 0 is the last committed token
    parents     [B, R] int64             query position that each one follows, -1 for position 0; without branches r - 1
    k, v        [B, H, T, D] float32     self-attention cache; query position r lies in slot positions[b, 0] + r
    bias        [H, T] float32           relative bias by distance (query position - key position >= 0)
    pages_k     [P, H, 4, D, 16] float32        cross-attention cache in pages of 64 source positions, packed as the weights
    pages_v     [P, H, ceil(D/16), 64, 16]       of linear.py: keys of 16 positions, values of 16 dimensions side by side;
                                                 or bfloat16 bits as uint16
    table       [B, pages] int64         page p of sequence b is pages[table[b, p]]
    sources     [B] int64                source lengths
    out         [n, H, D] float32

A query attends to the committed slots below positions[b, 0] and to its ancestors and itself, in ascending order of slots, so
its bits depend on its own sequence alone. Cross-attention reads the pages of a source once for all queries of its sequence,
and of sequences beside it that share them.
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.core.argmax import largest_loop
from foredraft.kernels.core.backend import HAS_NUMBA, njit
from foredraft.kernels.core.exp import exp32
from foredraft.kernels.core.gemm_microkernel import gemm_blocks
from foredraft.kernels.core.gemm_tile import LANES
from foredraft.kernels.core.workers import get_num_threads, parallel, threads_for
from foredraft.kernels.model.packing import widen

PAGE = 64
# What a multiply-add of self-attention costs, in multiply-adds of a product of several rows.
SELF_WORK = 4


def attend_reference(q: np.ndarray, keys: list, values: list, biases: list) -> np.ndarray:
    scores = [float(np.dot(q.astype(np.float64), key)) + bias for key, bias in zip(keys, biases, strict=True)]
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = sum(weights)
    return sum(w / total * value.astype(np.float64) for w, value in zip(weights, values, strict=True)).astype(np.float32)


def self_attention_reference(q, sequences, queries, positions, parents, k, v, bias) -> np.ndarray:
    out = np.empty_like(q)
    for i, (b, r) in enumerate(zip(sequences, queries, strict=True)):
        lineage = [int(r)]
        while parents[b, lineage[0]] >= 0:
            lineage.insert(0, int(parents[b, lineage[0]]))
        base = int(positions[b, 0])
        keys = [(slot, slot) for slot in range(base)] + [(base + a, int(positions[b, a])) for a in lineage]
        for h in range(q.shape[1]):
            out[i, h] = attend_reference(
                q[i, h], [k[b, h, slot] for slot, _ in keys], [v[b, h, slot] for slot, _ in keys],
                [float(bias[h, positions[b, r] - at]) for _, at in keys])
    return out


def new_pages(count: int, heads: int, head_size: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Empty pages_k and pages_v of `count` pages, float32 or uint16 (bfloat16)."""
    padded = -(-head_size // LANES)
    return (np.zeros((count, heads, PAGE // LANES, head_size, LANES), dtype),
            np.zeros((count, heads, padded, PAGE, LANES), dtype))


def write_page(page_k: np.ndarray, page_v: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
    """Write keys and values [s, H, D] of up to 64 source positions to one page [H, 4, D, 16], [H, D/16, 64, 16].

    All four have the type of the page.
    """
    s, H, D = k.shape
    for block in range(-(-s // LANES)):
        part = k[block * LANES : (block + 1) * LANES]
        page_k[:, block, :, : len(part)] = part.transpose(1, 2, 0)
    for block in range(-(-D // LANES)):
        part = v[:, :, block * LANES : (block + 1) * LANES]
        page_v[:, block, :s, : part.shape[2]] = part.transpose(1, 0, 2)


def read_page(page_k: np.ndarray, page_v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values [64, H, D] float32 of a page."""
    page_k, page_v = widen(page_k), widen(page_v)
    H, _, D, _ = page_k.shape
    return (page_k.transpose(1, 3, 0, 2).reshape(PAGE, H, D),
            page_v.transpose(2, 0, 1, 3).reshape(PAGE, H, -1)[:, :, :D])


def cross_attention_reference(q, sequences, pages_k, pages_v, table, sources) -> np.ndarray:
    out = np.empty_like(q)
    for i, b in enumerate(sequences):
        pages = [read_page(pages_k[page], pages_v[page]) for page in table[b, : -(-sources[b] // PAGE)]]
        keys = np.concatenate([k for k, _ in pages])[: sources[b]]
        values = np.concatenate([v for _, v in pages])[: sources[b]]
        for h in range(q.shape[1]):
            out[i, h] = attend_reference(q[i, h], list(keys[:, h]), list(values[:, h]), [0.0] * len(keys))
    return out


@njit(fastmath={"reassoc", "contract"})
def softmax_loop(scores):
    top = largest_loop(scores)
    total = np.float32(0.0)
    for t in range(scores.shape[0]):
        scores[t] = exp32(scores[t] - top)
        total += scores[t]
    return total


@njit(fastmath={"reassoc", "contract"})
def _self_scores(q, keys, bias, at, base, slots, scores):
    """scores [t <= at] of a query q [D] at position `at` with keys [T, D]; slots: where keys from position `base` on are."""
    for t in range(at + 1):
        slot = t if t < base else slots[t]
        total = np.float32(0.0)
        for d in range(q.shape[0]):
            total += q[d] * keys[slot, d]
        scores[t] = total + bias[at - t]


@njit(fastmath={"contract"})
def _self_mix(scores, scale, values, at, base, slots, out):
    """The sum [D] of values [T, D], each times its score and `scale`."""
    for d in range(out.shape[0]):
        out[d] = np.float32(0.0)
    for t in range(at + 1):
        slot = t if t < base else slots[t]
        weight = scores[t] * scale
        for d in range(out.shape[0]):
            out[d] += weight * values[slot, d]


@parallel
@njit()
def _self_tasks(first, last, q, sequences, queries, positions, parents, k, v, bias, out):
    H = q.shape[1]
    scores = np.empty(k.shape[2], np.float32)
    slots = np.empty(k.shape[2], np.int64)
    for task in range(first, last):
        i, h = task // H, task % H
        b, r = sequences[i], queries[i]
        base, at = positions[b, 0], positions[b, r]
        ancestor = r
        for t in range(at, base - 1, -1):
            slots[t] = base + ancestor
            ancestor = parents[b, ancestor]
        _self_scores(q[i, h], k[b, h], bias[h], at, base, slots, scores)
        total = softmax_loop(scores[: at + 1])
        _self_mix(scores, np.float32(1.0) / total, v[b, h], at, base, slots, out[i, h])


@njit()
def _groups(sequences, table):
    """[g + 1]: where the queries of each source begin, and the end of the last one's; a page belongs to one source."""
    starts = np.empty(sequences.shape[0] + 1, np.int64)
    count = 0
    for i in range(sequences.shape[0]):
        if i == 0 or table[sequences[i], 0] != table[sequences[i - 1], 0]:
            starts[count] = i
            count += 1
    starts[count] = sequences.shape[0]
    return starts[: count + 1]


@parallel
@njit()
def _cross_tasks(first, last, q, sequences, starts, pages_k, pages_v, table, sources, out):
    n, H, D = q.shape
    padded = pages_v.shape[2] * LANES
    longest = 0
    for g in range(starts.shape[0] - 1):
        longest = max(longest, starts[g + 1] - starts[g])
    scores = np.empty((longest, table.shape[1] * PAGE), np.float32)
    part = np.empty((longest, padded), np.float32)
    total = np.empty((longest, padded), np.float32)
    scores_at = np.int64(scores.ctypes.data)
    for task in range(first, last):
        g, h = task // H, task % H
        i, M = starts[g], starts[g + 1] - starts[g]
        S = sources[sequences[i]]
        pages = table[sequences[i]]
        q_at = np.int64(q.ctypes.data) + (i * H + h) * D * 4
        for start in range(0, S, PAGE):
            keys = pages_k[pages[start // PAGE], h]
            keys_at = np.int64(keys.ctypes.data)
            gemm_blocks(q_at, H * D, keys, keys_at, D * LANES, D, scores_at + start * 4, scores.shape[1], M, PAGE // LANES)
        for m in range(M):
            weight = np.float32(1.0) / softmax_loop(scores[m, :S])
            for s in range(S):
                scores[m, s] *= weight
        total[:M] = np.float32(0.0)
        for start in range(0, S, PAGE):
            values = pages_v[pages[start // PAGE], h]
            gemm_blocks(scores_at + start * 4, scores.shape[1], values, np.int64(values.ctypes.data), PAGE * LANES,
                        min(PAGE, S - start), np.int64(part.ctypes.data), padded, M, pages_v.shape[2])
            for m in range(M):
                for d in range(padded):
                    total[m, d] += part[m, d]
        for m in range(M):
            for d in range(D):
                out[i + m, h, d] = total[m, d]


@njit()
def self_attention_loop(q, sequences, queries, positions, parents, k, v, bias, out, threads):
    n, H, D = q.shape
    longest = 0
    for i in range(n):
        longest = max(longest, positions[sequences[i], queries[i]])
    threads = threads_for(n * H * D * longest * 2 * SELF_WORK, threads)
    _self_tasks(n * H, threads, q, sequences, queries, positions, parents, k, v, bias, out)


@njit()
def cross_attention_loop(q, sequences, pages_k, pages_v, table, sources, out, threads):
    n, H, D = q.shape
    longest = 0
    for i in range(n):
        longest = max(longest, sources[sequences[i]])
    starts = _groups(sequences, table)
    _cross_tasks((starts.shape[0] - 1) * H, threads_for(n * H * D * longest * 2, threads), q, sequences, starts, pages_k,
                 pages_v, table, sources, out)


def self_attention_numba(q, sequences, queries, positions, parents, k, v, bias) -> np.ndarray:
    out = np.empty_like(q)
    self_attention_loop(q, sequences, queries, positions, parents, k, v, bias, out, get_num_threads())
    return out


def cross_attention_numba(q, sequences, pages_k, pages_v, table, sources) -> np.ndarray:
    out = np.empty_like(q)
    cross_attention_loop(q, sequences, pages_k, pages_v, table, sources, out, get_num_threads())
    return out


SELF_ATTENTION = {"reference": self_attention_reference, "numba": self_attention_numba}
CROSS_ATTENTION = {"reference": cross_attention_reference, "numba": cross_attention_numba}


def self_attention(q, sequences, queries, positions, parents, k, v, bias) -> np.ndarray:
    """out [n, H, D], by numba where it is installed."""
    return SELF_ATTENTION["numba" if HAS_NUMBA else "reference"](q, sequences, queries, positions, parents, k, v, bias)


def cross_attention(q, sequences, pages_k, pages_v, table, sources) -> np.ndarray:
    """out [n, H, D], by numba where it is installed."""
    return CROSS_ATTENTION["numba" if HAS_NUMBA else "reference"](q, sequences, pages_k, pages_v, table, sources)
