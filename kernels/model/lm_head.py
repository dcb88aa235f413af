"""The language-model head over the query positions that were read.

    hidden     [B, R, C] float32     the decoder's output
    positions  [B, R] int64          decoder positions, -1: not read, its output is left as it is
    weight     [V/16, C, 16]         packed as in linear.py
    scale      float                 C^-0.5 for T5 v1.0, which ties the head to the embedding; else 1
    logits     [B, R, V] float32     out; or, without storing the logits,
    chosen     [B, R] int64          out: their argmax, the lowest token on ties
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.model.linear import linear_argmax_loop, linear_reference, linear_scatter_loop


def logits_reference(hidden, positions, weight, scale, logits) -> None:
    for b, r in zip(*np.nonzero(positions >= 0), strict=True):
        logits[b, r] = linear_reference(hidden[b, r : r + 1] * np.float32(scale), weight, logits.shape[2])[0]


def choose_reference(hidden, positions, weight, outputs, scale, chosen) -> None:
    logits = np.zeros((*hidden.shape[:2], outputs), np.float32)
    logits_reference(hidden, positions, weight, scale, logits)
    read = positions >= 0
    chosen[read] = logits.argmax(2)[read]


@njit()
def _gather(hidden, positions, scale):
    """The scaled rows of hidden that were read, and their indices in [B R]."""
    B, R, C = hidden.shape
    x, at = np.empty((B * R, C), np.float32), np.empty(B * R, np.int64)
    n = 0
    for b in range(B):
        for r in range(R):
            if positions[b, r] >= 0:
                for c in range(C):
                    x[n, c] = hidden[b, r, c] * np.float32(scale)
                at[n] = b * R + r
                n += 1
    return x[:n], at[:n]


@njit()
def _logits_loop(hidden, positions, weight, scale, logits, threads):
    x, at = _gather(hidden, positions, scale)
    B, R, V = logits.shape
    linear_scatter_loop(x, weight, at, logits.reshape(B * R, V), threads)


@njit()
def _choose_loop(hidden, positions, weight, outputs, scale, chosen, threads):
    x, at = _gather(hidden, positions, scale)
    best, flat = np.empty(x.shape[0], np.int64), chosen.reshape(chosen.size)
    linear_argmax_loop(x, weight, outputs, best, threads)
    for n in range(x.shape[0]):
        flat[at[n]] = best[n]


def logits_numba(hidden, positions, weight, scale, logits) -> None:
    _logits_loop(hidden, positions, weight, scale, logits, get_num_threads())


def choose_numba(hidden, positions, weight, outputs, scale, chosen) -> None:
    _choose_loop(hidden, positions, weight, outputs, scale, chosen, get_num_threads())


LOGITS = {"reference": logits_reference, "numba": logits_numba}
CHOOSE = {"reference": choose_reference, "numba": choose_numba}
