"""The language-model head over the rows that were read.

    hidden     [B, R, C] float32     the decoder's output
    positions  [B, R] int64          -1: the row was not read; its output stays as it is
    weight     [V/16, C, 16]         packed as in linear.py
    scale      float                 C^-0.5 for T5 v1.0, which ties the head to the embedding; 1 otherwise
    logits     [B, R, V] float32     or, without writing them, chosen [B, R] int64: the argmax, lowest id on ties
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.backend import get_num_threads, njit
from foredraft.kernels.linear import linear_argmax_loop, linear_loop, linear_reference


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
    B, R, C = hidden.shape
    x = np.empty((B * R, C), np.float32)
    n = 0
    for b in range(B):
        for r in range(R):
            if positions[b, r] >= 0:
                for c in range(C):
                    x[n, c] = hidden[b, r, c] * np.float32(scale)
                n += 1
    return x[:n]


@njit()
def _logits_loop(hidden, positions, weight, scale, logits, threads):
    x = _gather(hidden, positions, scale)
    B, R, V = logits.shape
    in_place = B == 1 or x.shape[0] == B * R
    for r in range(x.shape[0] if B == 1 else 0):
        in_place = in_place and positions[0, r] >= 0
    if in_place:
        # what one sequence reads are its first rows; fresh memory would cost a page fault every 4 kB
        linear_loop(x, weight, logits.reshape(B * R, V)[: x.shape[0]], threads)
        return
    rows = np.empty((x.shape[0], V), np.float32)
    linear_loop(x, weight, rows, threads)
    n = 0
    for b in range(B):
        for r in range(R):
            if positions[b, r] >= 0:
                logits[b, r] = rows[n]
                n += 1


@njit()
def _choose_loop(hidden, positions, weight, outputs, scale, chosen, threads):
    x = _gather(hidden, positions, scale)
    best = np.empty(x.shape[0], np.int64)
    linear_argmax_loop(x, weight, outputs, best, threads)
    n = 0
    for b in range(positions.shape[0]):
        for r in range(positions.shape[1]):
            if positions[b, r] >= 0:
                chosen[b, r] = best[n]
                n += 1


def logits_numba(hidden, positions, weight, scale, logits) -> None:
    _logits_loop(hidden, positions, weight, scale, logits, get_num_threads())


def choose_numba(hidden, positions, weight, outputs, scale, chosen) -> None:
    _choose_loop(hidden, positions, weight, outputs, scale, chosen, get_num_threads())


LOGITS = {"reference": logits_reference, "numba": logits_numba}
CHOOSE = {"reference": choose_reference, "numba": choose_numba}
