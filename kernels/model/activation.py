"""The activation of the feed-forward layer, with the gate of T5 v1.1 (Shazeer 2020).

    inner       [n, F], gated [n, 2F] float32    the gate's half first, then the linear half
    active      [n, F] float32                   out: f(inner); gated: f(first half) * second half
    activation  int                              index into ACTIVATIONS
    gated       bool
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.exp import HIGHEST, exp32
from foredraft.kernels.core.workers import get_num_threads, parallel

ACTIVATIONS = ("relu", "gelu_new", "gelu", "silu")
_TANH_GELU = math.sqrt(2.0 / math.pi)


def _one(x: float, activation: int) -> float:
    if activation == 0:
        return max(x, 0.0)
    if activation == 1:
        return 0.5 * x * (1.0 + math.tanh(_TANH_GELU * (x + 0.044715 * x**3)))
    if activation == 2:
        return 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0)))
    return x / (1.0 + math.exp(-x))


def activate_reference(inner: np.ndarray, active: np.ndarray, activation: int, gated: bool) -> None:
    F = active.shape[1]
    active[:] = np.vectorize(_one, otypes=[np.float64])(inner[:, :F].astype(np.float64), activation)
    if gated:
        active *= inner[:, F:]


@njit(error_model="numpy")
def activate_loop(inner, active, activation, gated):
    n, F = active.shape
    for i in range(n):
        if activation == 0:
            for f in range(F):
                active[i, f] = max(inner[i, f], np.float32(0.0))
        elif activation == 1:
            # (1 + tanh u) / 2 is the logistic function of 2u
            for f in range(F):
                x = inner[i, f]
                u = np.float32(-2.0 * _TANH_GELU) * (x + np.float32(0.044715) * x * x * x)
                active[i, f] = x / (np.float32(1.0) + exp32(min(u, HIGHEST)))
        elif activation == 2:
            for f in range(F):
                x = inner[i, f]
                active[i, f] = np.float32(0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))))
        else:
            for f in range(F):
                x = inner[i, f]
                active[i, f] = x / (np.float32(1.0) + exp32(min(-x, HIGHEST)))
        if gated:
            for f in range(F):
                active[i, f] *= inner[i, F + f]


@parallel
@njit()
def _activate_rows(first, last, inner, active, activation, gated):
    activate_loop(inner[first:last], active[first:last], activation, gated)


@njit()
def _activate_threads(inner, active, activation, gated, threads):
    _activate_rows(active.shape[0], threads, inner, active, activation, gated)


def activate_numba(inner: np.ndarray, active: np.ndarray, activation: int, gated: bool) -> None:
    """Multi-threaded, for the many rows of an encoder."""
    _activate_threads(inner, active, activation, gated, get_num_threads())


ACTIVATE = {"reference": activate_reference, "numba": activate_numba}
