"""One pass of the T5 decoder over the query positions of a step, in one compiled call.

    tokens, positions, parents  [B, R] int64   positions -1: not read; parents as in attention.py
    embedding                   [V, C]         float32, or bfloat16 bits as uint16
    norms [L, 3, C], final_norm [C] float32    self-attention, cross-attention, feed-forward; after the last layer
    qkv [L, 3HD/16, C, 16], self_out [L, C/16, HD, 16], cross_q [L, HD/16, C, 16], cross_out [L, C/16, HD, 16],
    ff_in [L, F/16 or 2F/16, C, 16] (gate, then linear half), ff_out [L, C/16, F, 16]      packed as in linear.py,
                                               or quantised: then the third size is greater by 4
    bias                        [1 or L, H, T] as in attention.py, of all layers together or of each
    k, v                        [L, B, H, T, D], written at slots positions[:, 0] + query position
    pages_k, pages_v            [L, P, ...], table, sources: as in attention.py
    activation                  int            as in activation.py;  gated bool
    kept                        [L, 3] bool    sublayers that run, in the order of norms; a skipped one adds nothing
    hidden                      [B, R, C]      out, after the final norm, for the positions that are read

Every part has one reduction order, so a result depends on its own sequence alone.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.rows import add_row, copy_row
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.model.activation import activate_loop, activate_reference
from foredraft.kernels.model.attention import (
    cross_attention_loop,
    cross_attention_reference,
    self_attention_loop,
    self_attention_reference,
)
from foredraft.kernels.model.linear import linear_loop, linear_reference
from foredraft.kernels.model.norm import norm_loop, norm_reference
from foredraft.kernels.model.packing import inputs_of, widen


def decoder_reference(tokens, positions, parents, embedding, norms, final_norm, qkv, self_out, cross_q, cross_out, ff_in,
                      ff_out, bias, k, v, pages_k, pages_v, table, sources, activation, gated, epsilon, kept,
                      hidden) -> None:
    sequences, queries = np.nonzero(positions >= 0)
    L, H, D, C, F = qkv.shape[0], k.shape[2], k.shape[4], embedding.shape[1], widen(ff_out[0]).shape[1]
    x = widen(embedding)[tokens[sequences, queries]].astype(np.float32)
    for layer in range(L):
        if kept[layer, 0]:
            mixed = linear_reference(norm_reference(x, norms[layer, 0], epsilon), qkv[layer], 3 * H * D)
            q, new_k, new_v = mixed.reshape(len(sequences), 3, H, D).transpose(1, 0, 2, 3)
            for i, (b, r) in enumerate(zip(sequences, queries, strict=True)):
                k[layer, b, :, positions[b, 0] + r] = new_k[i]
                v[layer, b, :, positions[b, 0] + r] = new_v[i]
            attended = self_attention_reference(q, sequences, queries, positions, parents, k[layer], v[layer],
                                                bias[layer % len(bias)])
            x = x + linear_reference(attended.reshape(len(sequences), H * D), self_out[layer], C)
        if kept[layer, 1]:
            q = linear_reference(norm_reference(x, norms[layer, 1], epsilon), cross_q[layer], H * D).reshape(-1, H, D)
            attended = cross_attention_reference(q, sequences, pages_k[layer], pages_v[layer], table, sources)
            x = x + linear_reference(attended.reshape(len(sequences), H * D), cross_out[layer], C)
        if kept[layer, 2]:
            inner = linear_reference(norm_reference(x, norms[layer, 2], epsilon), ff_in[layer], 2 * F if gated else F)
            active = np.empty((len(sequences), F), np.float32)
            activate_reference(inner, active, activation, gated)
            x = x + linear_reference(active, ff_out[layer], C)
    hidden[sequences, queries] = norm_reference(x, final_norm, epsilon)


@njit()
def embed_loop(embedding, tokens, x):
    """Write the embeddings of tokens [n] to x [n, C]."""
    if embedding.itemsize == 2:
        bits = x.view(np.uint32)
        for i in range(tokens.shape[0]):
            for c in range(x.shape[1]):
                bits[i, c] = np.uint32(embedding[tokens[i], c]) << np.uint32(16)
    else:
        for i in range(tokens.shape[0]):
            for c in range(x.shape[1]):
                x[i, c] = embedding[tokens[i], c]


@njit()
def layers_loop(x, sequences, queries, positions, parents, norms, qkv, self_out, cross_q, cross_out, ff_in, ff_out, bias, k,
                v, pages_k, pages_v, table, sources, activation, gated, epsilon, kept, threads):
    """Pass x [n, C], of sequences and query positions `queries` [n], through the layers, in place."""
    n, C = x.shape
    L, H, D, F = qkv.shape[0], k.shape[2], k.shape[4], inputs_of(ff_out)
    normed = np.empty((n, C), np.float32)
    mixed = np.empty((n, 3 * H * D), np.float32)
    q = np.empty((n, H, D), np.float32)
    attended = np.empty((n, H, D), np.float32)
    inner = np.empty((n, 2 * F if gated else F), np.float32)
    active = np.empty((n, F), np.float32)
    added = np.empty((n, C), np.float32)
    for layer in range(L):
        if kept[layer, 0]:
            norm_loop(x, norms[layer, 0], epsilon, normed)
            linear_loop(normed, qkv[layer], mixed, threads)
            for i in range(n):
                b = sequences[i]
                slot = positions[b, 0] + queries[i]
                for h in range(H):
                    for d in range(D):
                        q[i, h, d] = mixed[i, h * D + d]
                        k[layer, b, h, slot, d] = mixed[i, (H + h) * D + d]
                        v[layer, b, h, slot, d] = mixed[i, (2 * H + h) * D + d]
            self_attention_loop(q, sequences, queries, positions, parents, k[layer], v[layer], bias[layer % bias.shape[0]],
                                attended, threads)
            linear_loop(attended.reshape(n, H * D), self_out[layer], added, threads)
            add_row(added.reshape(n * C), x.reshape(n * C))
        if kept[layer, 1]:
            norm_loop(x, norms[layer, 1], epsilon, normed)
            linear_loop(normed, cross_q[layer], q.reshape(n, H * D), threads)
            cross_attention_loop(q, sequences, pages_k[layer], pages_v[layer], table, sources, attended, threads)
            linear_loop(attended.reshape(n, H * D), cross_out[layer], added, threads)
            add_row(added.reshape(n * C), x.reshape(n * C))
        if kept[layer, 2]:
            norm_loop(x, norms[layer, 2], epsilon, normed)
            linear_loop(normed, ff_in[layer], inner, threads)
            activate_loop(inner, active, activation, gated)
            linear_loop(active, ff_out[layer], added, threads)
            add_row(added.reshape(n * C), x.reshape(n * C))


@njit()
def _decoder_loop(tokens, positions, parents, embedding, norms, final_norm, qkv, self_out, cross_q, cross_out, ff_in, ff_out,
                  bias, k, v, pages_k, pages_v, table, sources, activation, gated, epsilon, kept, hidden, threads):
    B, R, C = hidden.shape
    sequences, queries, inputs = (np.empty(B * R, np.int64), np.empty(B * R, np.int64), np.empty(B * R, np.int64))
    n = 0
    for b in range(B):
        for r in range(R):
            if positions[b, r] >= 0:
                sequences[n], queries[n], inputs[n] = b, r, tokens[b, r]
                n += 1
    sequences, queries = sequences[:n], queries[:n]
    x, normed = np.empty((n, C), np.float32), np.empty((n, C), np.float32)
    embed_loop(embedding, inputs[:n], x)
    layers_loop(x, sequences, queries, positions, parents, norms, qkv, self_out, cross_q, cross_out, ff_in, ff_out, bias, k,
                v, pages_k, pages_v, table, sources, activation, gated, epsilon, kept, threads)
    norm_loop(x, final_norm, epsilon, normed)
    for i in range(n):
        copy_row(normed[i], hidden[sequences[i], queries[i]])


def decoder_numba(tokens, positions, parents, embedding, norms, final_norm, qkv, self_out, cross_q, cross_out, ff_in,
                  ff_out, bias, k, v, pages_k, pages_v, table, sources, activation, gated, epsilon, kept,
                  hidden) -> None:
    _decoder_loop(tokens, positions, parents, embedding, norms, final_norm, qkv, self_out, cross_q, cross_out, ff_in, ff_out,
                  bias, k, v, pages_k, pages_v, table, sources, activation, gated, epsilon, kept, hidden, get_num_threads())


DECODER = {"reference": decoder_reference, "numba": decoder_numba}
