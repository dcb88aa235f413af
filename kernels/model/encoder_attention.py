"""Self-attention of a T5 encoder layer over a whole source, with relative bias.

    mixed   [S, 3HD] float32      queries, keys and values, heads side by side (T5 does not scale by 1/sqrt(D))
    bias    [H, 2S - 1] float32   relative bias by key position - query position + S - 1
    out     [S, HD] float32       softmax(q k + bias) v

The bias of a query is a window of its head's row, so no S x S matrix is built. Scores are held for a few queries at a time.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.argmax import larger
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.exp import exp32
from foredraft.kernels.core.gemm_microkernel import gemm_blocks
from foredraft.kernels.core.gemm_tile import LANES
from foredraft.kernels.core.workers import get_num_threads, parallel
from foredraft.kernels.model.attention import attend_reference

# Queries whose scores fit into the L2 cache together with a head's keys and values.
QUERIES = 32


def encoder_attention_reference(mixed: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    S, H = mixed.shape[0], bias.shape[0]
    q, k, v = mixed.reshape(S, 3, H, -1).transpose(1, 2, 0, 3)
    heads = out.reshape(S, H, -1)
    for i in range(S):
        for h in range(H):
            biases = [float(bias[h, j - i + S - 1]) for j in range(S)]
            heads[i, h] = attend_reference(q[h, i], list(k[h]), list(v[h]), biases)


@njit()
def _pack_head(mixed, h, H, keys, values):
    """Pack keys and values of a head as in attention.py's pages: [S/16, D, 16] and [D/16, S, 16]."""
    S, D = mixed.shape[0], keys.shape[1]
    for j in range(S):
        for d in range(D):
            keys[j // LANES, d, j % LANES] = mixed[j, (H + h) * D + d]
        for d in range(D):
            values[d // LANES, j, d % LANES] = mixed[j, (2 * H + h) * D + d]


@njit(fastmath={"reassoc", "contract"})
def _softmax_with(scores, bias):
    """Turn scores + bias into unnormalised weights, in place; returns their sum."""
    top = np.float32(-np.inf)
    for j in range(scores.shape[0]):
        scores[j] += bias[j]
        top = larger(top, scores[j])
    total = np.float32(0.0)
    for j in range(scores.shape[0]):
        scores[j] = exp32(scores[j] - top)
        total += scores[j]
    return total


@parallel
@njit()
def _tasks(first, last, mixed, bias, out):
    """Tasks first..last-1; task h * ceil(S / QUERIES) + n is the n-th chunk of queries of head h."""
    S, H = mixed.shape[0], bias.shape[0]
    D = out.shape[1] // H
    chunks = (S + QUERIES - 1) // QUERIES
    blocks, padded_D = (S + LANES - 1) // LANES, (D + LANES - 1) // LANES
    padded = blocks * LANES
    keys = np.zeros((blocks, D, LANES), np.float32)
    values = np.zeros((padded_D, S, LANES), np.float32)
    scores = np.empty((QUERIES, padded), np.float32)
    mixed_values = np.empty((QUERIES, padded_D * LANES), np.float32)
    totals = np.empty(QUERIES, np.float32)
    keys_at, values_at = np.int64(keys.ctypes.data), np.int64(values.ctypes.data)
    scores_at, mixed_at = np.int64(scores.ctypes.data), np.int64(mixed_values.ctypes.data)
    packed = -1
    for task in range(first, last):
        h, start = task // chunks, task % chunks * QUERIES
        M = min(QUERIES, S - start)
        if packed != h:
            _pack_head(mixed, h, H, keys, values)
            packed = h
        q_at = np.int64(mixed.ctypes.data) + (start * mixed.shape[1] + h * D) * 4
        gemm_blocks(q_at, mixed.shape[1], keys, keys_at, D * LANES, D, scores_at, padded, M, blocks)
        for m in range(M):
            offset = S - 1 - start - m
            totals[m] = _softmax_with(scores[m, :S], bias[h, offset : offset + S])
        gemm_blocks(scores_at, padded, values, values_at, S * LANES, S, mixed_at, padded_D * LANES, M, padded_D)
        for m in range(M):
            scale = np.float32(1.0) / totals[m]
            for d in range(D):
                out[start + m, h * D + d] = mixed_values[m, d] * scale


@njit()
def _threads(mixed, bias, out, threads):
    tasks = bias.shape[0] * ((mixed.shape[0] + QUERIES - 1) // QUERIES)
    _tasks(tasks, threads, mixed, bias, out)


def encoder_attention_numba(mixed: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    _threads(mixed, bias, out, get_num_threads())


ENCODER_ATTENTION = {"reference": encoder_attention_reference, "numba": encoder_attention_numba}
