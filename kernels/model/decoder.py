"""One pass of the T5 decoder over the rows of a round, in one compiled call.

    tokens, positions, parents  [B, R] int64   positions -1: nothing to read; parents as in attention.py
    embedding                   [V, C]         float32, or bfloat16 bits as uint16
    norms [L, 3, C], final_norm [C] float32    self-attention, cross-attention, feed-forward; after the last layer
    qkv [L, 3HD/16, C, 16], self_out [L, C/16, HD, 16], cross_q [L, HD/16, C, 16], cross_out [L, C/16, HD, 16],
    ff_in [L, F/16 or 2F/16, C, 16] (gate, then linear part), ff_out [L, C/16, F, 16]      packed as in linear.py,
                                               or quantised: then the third size is greater by 4
    bias                        [H, T]         as in attention.py
    k, v                        [L, B, H, T, D], written at slots positions[:, 0] + row
    pages_k, pages_v            [L, P, ...], table, sources: as in attention.py
    activation                  int            as in activate.py;  gated bool
    kept                        [L, 3] bool    which sublayers run, in the order of norms; one that is skipped adds nothing
    hidden                      [B, R, C]      written for the rows that are read; after the final norm

Every part keeps one reduction order, so a row's bits depend on its own sequence alone.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import get_num_threads, njit
from foredraft.kernels.model.activation import activate_loop, activate_reference
from foredraft.kernels.model.attention import (
    cross_attention_loop,
    cross_attention_reference,
    self_attention_loop,
    self_attention_reference,
)
from foredraft.kernels.model.linear import inputs_of, linear_loop, linear_reference, widen
from foredraft.kernels.model.norm import norm_loop, norm_reference


def decoder_reference(tokens, positions, parents, embedding, norms, final_norm, qkv, self_out, cross_q, cross_out, ff_in,
                      ff_out, bias, k, v, pages_k, pages_v, table, sources, activation, gated, epsilon, kept,
                      hidden) -> None:
    batch, row = np.nonzero(positions >= 0)
    L, H, D, C, F = qkv.shape[0], k.shape[2], k.shape[4], embedding.shape[1], widen(ff_out[0]).shape[1]
    x = widen(embedding)[tokens[batch, row]].astype(np.float32)
    for layer in range(L):
        if kept[layer, 0]:
            mixed = linear_reference(norm_reference(x, norms[layer, 0], epsilon), qkv[layer], 3 * H * D)
            q, new_k, new_v = mixed.reshape(len(batch), 3, H, D).transpose(1, 0, 2, 3)
            for i, (b, r) in enumerate(zip(batch, row, strict=True)):
                k[layer, b, :, positions[b, 0] + r] = new_k[i]
                v[layer, b, :, positions[b, 0] + r] = new_v[i]
            seen = self_attention_reference(q, batch, row, positions, parents, k[layer], v[layer], bias)
            x = x + linear_reference(seen.reshape(len(batch), H * D), self_out[layer], C)
        if kept[layer, 1]:
            q = linear_reference(norm_reference(x, norms[layer, 1], epsilon), cross_q[layer], H * D).reshape(-1, H, D)
            seen = cross_attention_reference(q, batch, pages_k[layer], pages_v[layer], table, sources)
            x = x + linear_reference(seen.reshape(len(batch), H * D), cross_out[layer], C)
        if kept[layer, 2]:
            inner = linear_reference(norm_reference(x, norms[layer, 2], epsilon), ff_in[layer], 2 * F if gated else F)
            active = np.empty((len(batch), F), np.float32)
            activate_reference(inner, active, activation, gated)
            x = x + linear_reference(active, ff_out[layer], C)
    hidden[batch, row] = norm_reference(x, final_norm, epsilon)


@njit()
def embed_loop(embedding, ids, x):
    """x [n, C]: the embeddings of ids [n]."""
    if embedding.itemsize == 2:
        bits = x.view(np.uint32)
        for i in range(ids.shape[0]):
            for c in range(x.shape[1]):
                bits[i, c] = np.uint32(embedding[ids[i], c]) << np.uint32(16)
    else:
        for i in range(ids.shape[0]):
            for c in range(x.shape[1]):
                x[i, c] = embedding[ids[i], c]


@njit()
def layers_loop(x, batch, row, positions, parents, norms, qkv, self_out, cross_q, cross_out, ff_in, ff_out, bias, k, v,
                pages_k, pages_v, table, sources, activation, gated, epsilon, kept, threads):
    """Pass x [n, C] of the pairs (batch, row) [n] through the layers, in place."""
    n, C = x.shape
    L, H, D, F = qkv.shape[0], k.shape[2], k.shape[4], inputs_of(ff_out)
    normed = np.empty((n, C), np.float32)
    mixed = np.empty((n, 3 * H * D), np.float32)
    q = np.empty((n, H, D), np.float32)
    seen = np.empty((n, H, D), np.float32)
    inner = np.empty((n, 2 * F if gated else F), np.float32)
    active = np.empty((n, F), np.float32)
    added = np.empty((n, C), np.float32)
    for layer in range(L):
        if kept[layer, 0]:
            norm_loop(x, norms[layer, 0], epsilon, normed)
            linear_loop(normed, qkv[layer], mixed, threads)
            for i in range(n):
                b = batch[i]
                slot = positions[b, 0] + row[i]
                for h in range(H):
                    for d in range(D):
                        q[i, h, d] = mixed[i, h * D + d]
                        k[layer, b, h, slot, d] = mixed[i, (H + h) * D + d]
                        v[layer, b, h, slot, d] = mixed[i, (2 * H + h) * D + d]
            self_attention_loop(q, batch, row, positions, parents, k[layer], v[layer], bias, seen, threads)
            linear_loop(seen.reshape(n, H * D), self_out[layer], added, threads)
            x += added
        if kept[layer, 1]:
            norm_loop(x, norms[layer, 1], epsilon, normed)
            linear_loop(normed, cross_q[layer], q.reshape(n, H * D), threads)
            cross_attention_loop(q, batch, pages_k[layer], pages_v[layer], table, sources, seen, threads)
            linear_loop(seen.reshape(n, H * D), cross_out[layer], added, threads)
            x += added
        if kept[layer, 2]:
            norm_loop(x, norms[layer, 2], epsilon, normed)
            linear_loop(normed, ff_in[layer], inner, threads)
            activate_loop(inner, active, activation, gated)
            linear_loop(active, ff_out[layer], added, threads)
            x += added


@njit()
def _decoder_loop(tokens, positions, parents, embedding, norms, final_norm, qkv, self_out, cross_q, cross_out, ff_in, ff_out,
                  bias, k, v, pages_k, pages_v, table, sources, activation, gated, epsilon, kept, hidden, threads):
    B, R, C = hidden.shape
    # what is read, row by row
    batch, row, ids = np.empty(B * R, np.int64), np.empty(B * R, np.int64), np.empty(B * R, np.int64)
    n = 0
    for b in range(B):
        for r in range(R):
            if positions[b, r] >= 0:
                batch[n], row[n], ids[n] = b, r, tokens[b, r]
                n += 1
    batch, row = batch[:n], row[:n]
    x, normed = np.empty((n, C), np.float32), np.empty((n, C), np.float32)
    embed_loop(embedding, ids[:n], x)
    layers_loop(x, batch, row, positions, parents, norms, qkv, self_out, cross_q, cross_out, ff_in, ff_out, bias, k, v,
                pages_k, pages_v, table, sources, activation, gated, epsilon, kept, threads)
    norm_loop(x, final_norm, epsilon, normed)
    for i in range(n):
        hidden[batch[i], row[i]] = normed[i]


def decoder_numba(tokens, positions, parents, embedding, norms, final_norm, qkv, self_out, cross_q, cross_out, ff_in,
                  ff_out, bias, k, v, pages_k, pages_v, table, sources, activation, gated, epsilon, kept,
                  hidden) -> None:
    _decoder_loop(tokens, positions, parents, embedding, norms, final_norm, qkv, self_out, cross_q, cross_out, ff_in, ff_out,
                  bias, k, v, pages_k, pages_v, table, sources, activation, gated, epsilon, kept, hidden, get_num_threads())


DECODER = {"reference": decoder_reference, "numba": decoder_numba}
