"""One step of a stacked LSTM (Hochreiter and Schmidhuber 1997) for the sequences that read a token, states cached by slot.

    x             [n, C] float32            inputs
    sequences, slots [n] int64              sequence and slot of each input
    parents       [B, T] int64              the slot that each slot follows, -1 before the start (recurrent_drafting.py)
    first         [4U/16, C + U, 16]        packed as in model/linear.py, over [x ; h]; gates in torch's order i, f, g, o
    rest          [L-1, 4U/16, 2U, 16]      the layers above
    first_bias    [4U], rest_bias [L-1, 4U] float32
    h, c          [B, T, L, U] float32      states: read at the parent slot (zeros before the start), written at `slots`
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.exp import HIGHEST, exp32
from foredraft.kernels.core.rows import copy_row
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.model.linear import linear_loop, linear_reference

_ONE, _TWO = np.float32(1.0), np.float32(2.0)


def lstm_reference(x, sequences, slots, parents, first, first_bias, rest, rest_bias, h, c) -> None:
    L, U = h.shape[2:]
    for i, (b, t) in enumerate(zip(sequences, slots, strict=True)):
        below = x[i]
        for layer in range(L):
            weight, bias = (first, first_bias) if layer == 0 else (rest[layer - 1], rest_bias[layer - 1])
            h_before, c_before = (s[b, parents[b, t], layer] if parents[b, t] >= 0 else np.zeros(U, np.float32) for s in (h,
                                                                                                                          c))
            gates = linear_reference(np.concatenate((below, h_before))[None], weight, 4 * U)[0] + bias
            for u in range(U):
                i_gate, f_gate, o_gate = (1 / (1 + math.exp(-float(gates[g * U + u]))) for g in (0, 1, 3))
                c[b, t, layer, u] = f_gate * c_before[u] + i_gate * math.tanh(float(gates[2 * U + u]))
                h[b, t, layer, u] = o_gate * math.tanh(float(c[b, t, layer, u]))
            below = h[b, t, layer]


@njit(error_model="numpy")
def sigmoid32(x):
    return _ONE / (_ONE + exp32(min(-x, HIGHEST)))


@njit(error_model="numpy")
def _tanh32(x):
    return _ONE - _TWO / (_ONE + exp32(min(_TWO * x, HIGHEST)))


@njit()
def _gate(gates, bias, c_before, h, c):
    U = h.shape[0]
    for u in range(U):
        kept = sigmoid32(gates[U + u] + bias[U + u]) * c_before[u]
        c[u] = kept + sigmoid32(gates[u] + bias[u]) * _tanh32(gates[2 * U + u] + bias[2 * U + u])
        h[u] = sigmoid32(gates[3 * U + u] + bias[3 * U + u]) * _tanh32(c[u])


@njit()
def lstm_loop(x, sequences, slots, parents, first, first_bias, rest, rest_bias, h, c, threads):
    n, C = x.shape
    L, U = h.shape[2], h.shape[3]
    gates = np.empty((n, 4 * U), np.float32)
    zeros = np.zeros(U, np.float32)
    for layer in range(L):
        width = C if layer == 0 else U
        joined = np.zeros((n, width + U), np.float32)
        for i in range(n):
            b, t = sequences[i], slots[i]
            copy_row(x[i] if layer == 0 else h[b, t, layer - 1], joined[i, :width])
            if parents[b, t] >= 0:
                copy_row(h[b, parents[b, t], layer], joined[i, width:])
        if layer == 0:
            linear_loop(joined, first, gates, threads)
        else:
            linear_loop(joined, rest[layer - 1], gates, threads)
        for i in range(n):
            b, t = sequences[i], slots[i]
            before = parents[b, t]
            _gate(gates[i], first_bias if layer == 0 else rest_bias[layer - 1],
                  c[b, before, layer] if before >= 0 else zeros, h[b, t, layer], c[b, t, layer])


def lstm_numba(x, sequences, slots, parents, first, first_bias, rest, rest_bias, h, c) -> None:
    lstm_loop(x, sequences, slots, parents, first, first_bias, rest, rest_bias, h, c, get_num_threads())


LSTM = {"reference": lstm_reference, "numba": lstm_numba}
