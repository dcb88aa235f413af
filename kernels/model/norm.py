"""T5's layer norm, an RMS norm: no mean, no bias (Raffel et al. 2020, section 2.1; Zhang and Sennrich 2019).

    x       [M, C] float32    weight [C] float32    epsilon float
    out     [M, C] float32    x / sqrt(mean(x^2) + epsilon) * weight
"""

from __future__ import annotations

import math

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.workers import get_num_threads, parallel


def norm_reference(x: np.ndarray, weight: np.ndarray, epsilon: float, out: np.ndarray | None = None) -> np.ndarray:
    out = np.empty_like(x) if out is None else out
    for m, row in enumerate(x):
        scale = 1.0 / math.sqrt(sum(float(value) ** 2 for value in row) / len(row) + epsilon)
        out[m] = [float(value) * scale * float(w) for value, w in zip(row, weight, strict=True)]
    return out


@njit(fastmath={"reassoc", "contract"})
def norm_loop(x, weight, epsilon, out):
    M, C = x.shape
    for m in range(M):
        total = np.float32(0.0)
        for c in range(C):
            total += x[m, c] * x[m, c]
        scale = np.float32(1.0) / np.sqrt(total / np.float32(C) + np.float32(epsilon))
        for c in range(C):
            out[m, c] = x[m, c] * scale * weight[c]


@parallel
@njit()
def _norm_rows(first, last, x, weight, epsilon, out):
    norm_loop(x[first:last], weight, epsilon, out[first:last])


@njit()
def _norm_threads(x, weight, epsilon, out, threads):
    _norm_rows(x.shape[0], threads, x, weight, epsilon, out)


def norm_numba(x: np.ndarray, weight: np.ndarray, epsilon: float, out: np.ndarray | None = None) -> np.ndarray:
    """Multi-threaded, for the many rows of an encoder."""
    out = np.empty_like(x) if out is None else out
    _norm_threads(x, weight, epsilon, out, get_num_threads())
    return out


NORM = {"reference": norm_reference, "numba": norm_numba}
