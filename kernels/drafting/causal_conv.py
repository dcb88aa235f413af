"""One step of a stack of causal gated convolutions (Dauphin et al. 2017) for the rows that read an id.

    x             [n, C] float32            what the rows read
    rows, at      [n] int64                 sequence and slot of each
    above         [B, T] int64              the slot that each slot follows, -1 before the start (recurrent.py)
    first         [U/16, C, 16]             packed as in linear.py: into the stack
    rest          [L, 2U/16, kernel U, 16]  a layer over `kernel` places `dilations[l]` apart, the earliest first; the
                                            value's half, then the gate's
    first_bias    [U], rest_bias [L, 2U] float32;  dilations [L] int64
    h             [B, T, L + 1, U] float32  each layer's normed input, then the normed output; read at `at` and the slots
                                            above it (zeros before the start), written at `at`
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.core.backend import get_num_threads, njit
from foredraft.kernels.drafting.lstm_cell import sigmoid32
from foredraft.kernels.model.linear import inputs_of, linear_loop, linear_reference
from foredraft.kernels.model.norm import norm_loop, norm_reference

EPSILON = 1e-6


def cnn_reference(x, rows, at, above, first, first_bias, rest, rest_bias, dilations, h) -> None:
    U, L = h.shape[3], len(dilations)
    one = np.ones(U, np.float32)
    for i, (b, t) in enumerate(zip(rows, at, strict=True)):
        lineage = [t]
        while len(lineage) <= max(dilations, default=0) * (rest.shape[2] // U if L else 0):
            lineage.append(int(above[b, lineage[-1]]) if lineage[-1] >= 0 else -1)
        y = linear_reference(x[i : i + 1], first, U) + first_bias
        for layer in range(L):
            h[b, t, layer] = norm_reference(y, one, EPSILON)[0]
            kernel = rest[layer].shape[1] // U
            places = [lineage[(kernel - 1 - tap) * int(dilations[layer])] for tap in range(kernel)]
            seen = [h[b, place, layer] if place >= 0 else np.zeros(U, np.float32) for place in places]
            mixed = linear_reference(np.concatenate(seen)[None], rest[layer], 2 * U)[0] + rest_bias[layer]
            y = y + np.array([v / (1 + math.exp(-float(g))) for v, g in zip(mixed[:U], mixed[U:], strict=True)], np.float32)
        h[b, t, L] = norm_reference(y, one, EPSILON)[0]


@njit()
def _add_gated(mixed, bias, y):
    U = y.shape[0]
    for u in range(U):
        y[u] += (mixed[u] + bias[u]) * sigmoid32(mixed[U + u] + bias[U + u])


@njit()
def cnn_loop(x, rows, at, above, first, first_bias, rest, rest_bias, dilations, h, threads):
    n, L, U = x.shape[0], rest.shape[0], h.shape[3]
    one = np.ones(U, np.float32)
    y = np.empty((n, U), np.float32)
    normed = np.empty((n, U), np.float32)
    mixed = np.empty((n, 2 * U), np.float32)
    linear_loop(x, first, y, threads)
    for i in range(n):
        y[i] += first_bias
    kernel = inputs_of(rest) // U
    for layer in range(L):
        norm_loop(y, one, EPSILON, normed)
        joined = np.zeros((n, kernel * U), np.float32)
        for i in range(n):
            h[rows[i], at[i], layer] = normed[i]
            place = at[i]
            for tap in range(kernel - 1, -1, -1):
                if place >= 0:
                    joined[i, tap * U : (tap + 1) * U] = h[rows[i], place, layer]
                for _ in range(dilations[layer]):
                    place = above[rows[i], place] if place >= 0 else place
        linear_loop(joined, rest[layer], mixed, threads)
        for i in range(n):
            _add_gated(mixed[i], rest_bias[layer], y[i])
    norm_loop(y, one, EPSILON, normed)
    for i in range(n):
        h[rows[i], at[i], L] = normed[i]


def cnn_numba(x, rows, at, above, first, first_bias, rest, rest_bias, dilations, h) -> None:
    cnn_loop(x, rows, at, above, first, first_bias, rest, rest_bias, dilations, h, get_num_threads())


CNN = {"reference": cnn_reference, "numba": cnn_numba}
