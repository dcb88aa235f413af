"""One step of a stack of causal gated convolutions (Dauphin et al. 2017) for the sequences that read a token.

    x             [n, C] float32            inputs
    sequences, slots [n] int64              sequence and slot of each input
    parents       [B, T] int64              the slot that each slot follows, -1 before the start (recurrent_drafting.py)
    first         [U/16, C, 16]             packed as in model/linear.py: into the stack
    rest          [L, 2U/16, kernel U, 16]  layer l reads `kernel` slots, dilations[l] apart, the earliest first; outputs are
                                            the values, then the gates
    first_bias    [U], rest_bias [L, 2U] float32;  dilations [L] int64
    h             [B, T, L + 1, U] float32  each layer's normed input, then the normed output: read at ancestor slots (zeros
                                            before the start), written at `slots`
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.rows import add_row, copy_row
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.drafting.lstm_cell import sigmoid32
from foredraft.kernels.model.linear import linear_loop, linear_reference
from foredraft.kernels.model.norm import norm_loop, norm_reference
from foredraft.kernels.model.packing import inputs_of

EPSILON = 1e-6


def cnn_reference(x, sequences, slots, parents, first, first_bias, rest, rest_bias, dilations, h) -> None:
    U, L = h.shape[3], len(dilations)
    one = np.ones(U, np.float32)
    for i, (b, t) in enumerate(zip(sequences, slots, strict=True)):
        lineage = [t]
        while len(lineage) <= max(dilations, default=0) * (rest.shape[2] // U if L else 0):
            lineage.append(int(parents[b, lineage[-1]]) if lineage[-1] >= 0 else -1)
        y = linear_reference(x[i : i + 1], first, U) + first_bias
        for layer in range(L):
            h[b, t, layer] = norm_reference(y, one, EPSILON)[0]
            kernel = rest[layer].shape[1] // U
            ancestors = [lineage[(kernel - 1 - tap) * int(dilations[layer])] for tap in range(kernel)]
            seen = [h[b, slot, layer] if slot >= 0 else np.zeros(U, np.float32) for slot in ancestors]
            mixed = linear_reference(np.concatenate(seen)[None], rest[layer], 2 * U)[0] + rest_bias[layer]
            y = y + np.array([v / (1 + math.exp(-float(g))) for v, g in zip(mixed[:U], mixed[U:], strict=True)], np.float32)
        h[b, t, L] = norm_reference(y, one, EPSILON)[0]


@njit()
def _add_gated(mixed, bias, y):
    U = y.shape[0]
    for u in range(U):
        y[u] += (mixed[u] + bias[u]) * sigmoid32(mixed[U + u] + bias[U + u])


@njit()
def cnn_loop(x, sequences, slots, parents, first, first_bias, rest, rest_bias, dilations, h, threads):
    n, L, U = x.shape[0], rest.shape[0], h.shape[3]
    one = np.ones(U, np.float32)
    y = np.empty((n, U), np.float32)
    normed = np.empty((n, U), np.float32)
    mixed = np.empty((n, 2 * U), np.float32)
    linear_loop(x, first, y, threads)
    for i in range(n):
        add_row(first_bias, y[i])
    kernel = inputs_of(rest) // U
    for layer in range(L):
        norm_loop(y, one, EPSILON, normed)
        joined = np.zeros((n, kernel * U), np.float32)
        for i in range(n):
            copy_row(normed[i], h[sequences[i], slots[i], layer])
            slot = slots[i]
            for tap in range(kernel - 1, -1, -1):
                if slot >= 0:
                    copy_row(h[sequences[i], slot, layer], joined[i, tap * U : (tap + 1) * U])
                for _ in range(dilations[layer]):
                    slot = parents[sequences[i], slot] if slot >= 0 else slot
        linear_loop(joined, rest[layer], mixed, threads)
        for i in range(n):
            _add_gated(mixed[i], rest_bias[layer], y[i])
    norm_loop(y, one, EPSILON, normed)
    for i in range(n):
        copy_row(normed[i], h[sequences[i], slots[i], L])


def cnn_numba(x, sequences, slots, parents, first, first_bias, rest, rest_bias, dilations, h) -> None:
    cnn_loop(x, sequences, slots, parents, first, first_bias, rest, rest_bias, dilations, h, get_num_threads())


CNN = {"reference": cnn_reference, "numba": cnn_numba}
