"""Copy attention: a recurrent drafter attends to its source, and raises the logits of the source's tokens.

After pointer networks (Vinyals et al. 2015); the module is engine/drafters/neural/copy_module.py.

    query        [n, Q] float32             [state ; normed embeddings of the latest tokens, the last one first]
    mixed        [n, U + H D + C] float32   [state ; context, written here ; normed embedding of the last token]
    sequences    [n] int64                  the sequence of each query
    weights      CopyWeights, packed as in model/linear.py: query [HD/16, Q, 16], inner [F/16, U + H D + C, 16],
                 outer [C/16, F, 16]; biases, gain [U + H D + C] and gain_bias [1] float32
    source       SourceCache: pages_k, pages_v, table, sources as in model/attention.py
    out          [n, C] float32             outer(relu(inner(mixed)))
    copied       [n, S] float32             out: softplus gain times the attention weights of head 0, 0 past the source's end
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.gemm_microkernel import gemm_blocks
from foredraft.kernels.core.gemm_tile import LANES
from foredraft.kernels.core.rows import add_row, copy_row
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.model.attention import PAGE, cross_attention_reference, read_page, softmax_loop
from foredraft.kernels.model.linear import linear_loop, linear_reference


class CopyWeights(NamedTuple):
    query: np.ndarray
    query_bias: np.ndarray
    inner: np.ndarray
    inner_bias: np.ndarray
    outer: np.ndarray
    gain: np.ndarray
    gain_bias: np.ndarray


class SourceCache(NamedTuple):
    pages_k: np.ndarray
    pages_v: np.ndarray
    table: np.ndarray
    sources: np.ndarray


def copy_attention_reference(query, mixed, sequences, weights, source, out, copied) -> None:
    n, C = out.shape
    H, D = source.pages_k.shape[1], source.pages_k.shape[3]
    U = mixed.shape[1] - H * D - C
    q = (linear_reference(query, weights.query, H * D) + weights.query_bias).reshape(n, H, D)
    mixed[:, U : U + H * D] = cross_attention_reference(q, sequences, *source).reshape(n, H * D)
    copied[:] = 0
    for i, b in enumerate(sequences):
        S = int(source.sources[b])
        pages = [read_page(source.pages_k[page], source.pages_v[page])[0] for page in source.table[b, : -(-S // PAGE)]]
        scores = (np.concatenate(pages)[:S, 0].astype(np.float64) @ q[i, 0]).tolist()
        exponentials = [math.exp(score - max(scores)) for score in scores]
        raised = float(mixed[i].astype(np.float64) @ weights.gain) + float(weights.gain_bias[0])
        gain = max(raised, 0.0) + math.log1p(math.exp(-abs(raised)))
        copied[i, :S] = [gain * e / sum(exponentials) for e in exponentials]
    inner = linear_reference(mixed, weights.inner, len(weights.inner_bias)) + weights.inner_bias
    out[:] = linear_reference(np.maximum(inner, 0).astype(np.float32), weights.outer, C)


@njit(fastmath={"reassoc", "contract"})
def _gain(mixed, gain, bias):
    total = np.float32(0.0)
    for j in range(mixed.shape[0]):
        total += mixed[j] * gain[j]
    raised = np.float64(total + bias)
    return np.float32(max(raised, 0.0) + np.log1p(np.exp(-abs(raised))))


@njit()
def _attend(q, sequences, source, context, copied):
    n, H, D = q.shape
    wide = source.pages_v.shape[2] * LANES
    scores = np.empty(source.table.shape[1] * PAGE, np.float32)
    part = np.empty(wide, np.float32)
    scores_at, part_at = np.int64(scores.ctypes.data), np.int64(part.ctypes.data)
    for i in range(n):
        S = source.sources[sequences[i]]
        pages = source.table[sequences[i]]
        for h in range(H):
            q_at = np.int64(q.ctypes.data) + (i * H + h) * D * 4
            for start in range(0, S, PAGE):
                keys = source.pages_k[pages[start // PAGE], h]
                gemm_blocks(q_at, D, keys, np.int64(keys.ctypes.data), D * LANES, D, scores_at + start * 4, PAGE, 1,
                            PAGE // LANES)
            scale = np.float32(1.0) / softmax_loop(scores[:S])
            for s in range(S):
                scores[s] *= scale
            if h == 0:
                copy_row(scores[:S], copied[i, :S])
                copied[i, S:] = np.float32(0.0)
            seen = context[i, h * D : (h + 1) * D]
            seen[:] = np.float32(0.0)
            for start in range(0, S, PAGE):
                values = source.pages_v[pages[start // PAGE], h]
                gemm_blocks(scores_at + start * 4, PAGE, values, np.int64(values.ctypes.data), PAGE * LANES,
                            min(PAGE, S - start), part_at, wide, 1, source.pages_v.shape[2])
                for d in range(D):
                    seen[d] += part[d]


@njit()
def copy_attention_loop(query, mixed, sequences, weights, source, out, copied, threads):
    n, C = out.shape
    H, D = source.pages_k.shape[1], source.pages_k.shape[3]
    U = mixed.shape[1] - H * D - C
    q = np.empty((n, H, D), np.float32)
    flat = q.reshape(n, H * D)
    linear_loop(query, weights.query, flat, threads)
    for i in range(n):
        add_row(weights.query_bias, flat[i])
    _attend(q, sequences, source, mixed[:, U : U + H * D], copied)
    inner = np.empty((n, weights.inner_bias.shape[0]), np.float32)
    linear_loop(mixed, weights.inner, inner, threads)
    for i in range(n):
        for f in range(inner.shape[1]):
            inner[i, f] = max(inner[i, f] + weights.inner_bias[f], np.float32(0.0))
        copied[i] *= _gain(mixed[i], weights.gain, weights.gain_bias[0])
    linear_loop(inner, weights.outer, out, threads)


def copy_attention_numba(query, mixed, sequences, weights, source, out, copied) -> None:
    copy_attention_loop(query, mixed, sequences, weights, source, out, copied, get_num_threads())


COPY_ATTENTION = {"reference": copy_attention_reference, "numba": copy_attention_numba}
