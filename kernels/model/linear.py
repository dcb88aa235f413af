"""Linear layers for a few rows of activations: a skinny GEMM that streams the weight once.

    x       [M, K] float32    activations
    weight  [N/16, ..., 16]   packed or quantised, as in packing.py
    out     [M, N] float32    x @ W.T

With float weights, each output is accumulated in float32 over k = 0..K-1 in order, one fused multiply-add a step. With int8
and int4 weights, each row of x is rounded to integers (levels.py); their products with the weights are added exactly, over
all inputs (int8) or over those that share a scale (int4). So the bits of a row do not depend on the number of rows, and
speculative greedy decoding equals plain greedy decoding.

`linear_argmax` returns the index of each row's largest output (the lowest on ties) and never stores the outputs.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop
from foredraft.kernels.core.backend import HAS_NUMBA, njit
from foredraft.kernels.core.gemm_microkernel import gemm_blocks, is_integer
from foredraft.kernels.core.gemm_tile import LANES
from foredraft.kernels.core.rows import copy_row
from foredraft.kernels.core.workers import get_num_threads, parallel, threads_for
from foredraft.kernels.model.levels import levels_loop, levels_reference
from foredraft.kernels.model.packing import integers, unpack, widen

# Blocks whose outputs stay in the L1 cache until they are reduced or copied.
CHUNK_BLOCKS = 32
# Blocks that a thread takes at once: as many as a tile of gemm_microkernel.py.
TASK_BLOCKS = 4


def linear_reference(x: np.ndarray, weight: np.ndarray, outputs: int, out: np.ndarray | None = None) -> np.ndarray:
    out = np.empty((len(x), outputs), np.float32) if out is None else out
    out[:] = _exact(x, weight, outputs)
    return out


def _exact(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    if weight.dtype in (np.int8, np.uint8):
        (levels, of_row), (values, scales) = levels_reference(x), integers(weight)
        total = np.zeros((len(x), len(values)), np.float32)
        for levels_of, values_of, scale in zip(np.split(levels, scales.shape[1], 1), np.split(values, scales.shape[1], 1),
                                               scales.T, strict=True):
            # float64 holds the product exactly, as a fused multiply-add does
            total = np.float32((levels_of @ values_of.T.astype(np.int64)).astype(np.float32) * np.float64(scale) + total)
        return (total * of_row[:, None])[:, :outputs]
    W = unpack(widen(weight), outputs).astype(np.float64)
    return np.array([[sum(float(a) * float(b) for a, b in zip(row, w, strict=True)) for w in W] for row in x], np.float32)


def linear_argmax_reference(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    return np.array([int(np.argmax(row)) for row in linear_reference(x, weight, outputs)], np.int64)


@njit()
def _span(x, levels, weight, first, last, out, out_offset):
    """out[:, out_offset + 16 i :][:16] = x @ block (first + i), for blocks first..last-1; out has room for all 16."""
    M, K = x.shape
    w_stride = weight.shape[1] * LANES
    w_at = np.int64(weight.ctypes.data) + first * w_stride * weight.itemsize
    x_at, x_stride = np.int64(x.ctypes.data), x.strides[0] // 4
    if is_integer(weight):
        x_at, x_stride = np.int64(levels.ctypes.data), levels.shape[1] * levels.shape[2]
    gemm_blocks(x_at, x_stride, weight, w_at, w_stride, K,
                np.int64(out.ctypes.data) + out_offset * 4, out.strides[0] // 4, M, last - first)


@njit()
def linear_serial(x, levels, weight, out, first, last):
    """Blocks first..last-1 of the outputs, single-threaded, for compiled kernels; `levels` of x are levels_loop's."""
    N = out.shape[1]
    full = min(last, N // LANES)
    if full > first:
        _span(x, levels, weight, first, full, out, first * LANES)
    if last > full:
        partial = np.empty((x.shape[0], LANES), np.float32)
        _span(x, levels, weight, full, full + 1, partial, 0)
        for m in range(x.shape[0]):
            copy_row(partial[m, : N - full * LANES], out[m, full * LANES :])


@parallel
@njit()
def _linear_tasks(first, last, x, levels, weight, out):
    linear_serial(x, levels, weight, out, first * TASK_BLOCKS, min(last * TASK_BLOCKS, weight.shape[0]))


@njit()
def linear_loop(x, weight, out, threads):
    """linear for compiled kernels; every thread streams contiguous runs of blocks."""
    tasks = (weight.shape[0] + TASK_BLOCKS - 1) // TASK_BLOCKS
    threads = threads_for(x.shape[0] * x.shape[1] * out.shape[1], threads)
    _linear_tasks(tasks, threads, x, levels_loop(x, weight, threads), weight, out)


@parallel
@njit()
def _scatter_tasks(first, last, x, levels, weight, at, out):
    """Tasks of CHUNK_BLOCKS blocks."""
    N = out.shape[1]
    # outputs are written once, to their final rows: a fresh buffer would cost a page fault every 4 kB
    scores = np.empty((x.shape[0], CHUNK_BLOCKS * LANES), np.float32)
    for task in range(first, last):
        start, stop = task * CHUNK_BLOCKS, min((task + 1) * CHUNK_BLOCKS, weight.shape[0])
        _span(x, levels, weight, start, stop, scores, 0)
        begin, end = start * LANES, min(stop * LANES, N)
        for m in range(x.shape[0]):
            copy_row(scores[m, : end - begin], out[at[m], begin:end])


@njit()
def linear_scatter_loop(x, weight, at, out, threads):
    """linear_loop that writes row m to out[at[m]]; at [M] int64."""
    tasks = (weight.shape[0] + CHUNK_BLOCKS - 1) // CHUNK_BLOCKS
    threads = threads_for(x.shape[0] * x.shape[1] * out.shape[1], threads)
    _scatter_tasks(tasks, threads, x, levels_loop(x, weight, threads), weight, at, out)


@parallel
@njit()
def _argmax_tasks(first, last, x, levels, weight, outputs, best, best_at):
    """Tasks of CHUNK_BLOCKS blocks: best [tasks, M] is the largest output of each, best_at its index."""
    M = x.shape[0]
    scores = np.empty((M, CHUNK_BLOCKS * LANES), np.float32)
    for task in range(first, last):
        start, stop = task * CHUNK_BLOCKS, min((task + 1) * CHUNK_BLOCKS, weight.shape[0])
        _span(x, levels, weight, start, stop, scores, 0)
        width = min(stop * LANES, outputs) - start * LANES
        for m in range(M):
            at = argmax_loop(scores[m, :width])
            best[task, m], best_at[task, m] = scores[m, at], start * LANES + at


@njit()
def linear_argmax_loop(x, weight, outputs, out, threads):
    M = x.shape[0]
    tasks = (weight.shape[0] + CHUNK_BLOCKS - 1) // CHUNK_BLOCKS
    best, best_at = np.empty((tasks, M), np.float32), np.empty((tasks, M), np.int64)
    threads = threads_for(M * x.shape[1] * outputs, threads)
    _argmax_tasks(tasks, threads, x, levels_loop(x, weight, threads), weight, outputs, best, best_at)
    for m in range(M):
        top = np.float32(-np.inf)
        out[m] = 0
        for task in range(tasks):
            if best[task, m] > top:
                top, out[m] = best[task, m], best_at[task, m]


def linear_numba(x: np.ndarray, weight: np.ndarray, outputs: int, out: np.ndarray | None = None) -> np.ndarray:
    out = np.empty((x.shape[0], outputs), np.float32) if out is None else out
    linear_loop(x, weight, out, get_num_threads())
    return out


def linear_argmax_numba(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    out = np.empty(x.shape[0], np.int64)
    linear_argmax_loop(x, weight, outputs, out, get_num_threads())
    return out


LINEAR = {"reference": linear_reference, "numba": linear_numba}
LINEAR_ARGMAX = {"reference": linear_argmax_reference, "numba": linear_argmax_numba}


def linear(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    """out [M, N] float32, by numba where it is installed."""
    return LINEAR["numba" if HAS_NUMBA else "reference"](x, weight, outputs)


def linear_argmax(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    """[M] int64: the index of each row's largest output, by numba where it is installed."""
    return LINEAR_ARGMAX["numba" if HAS_NUMBA else "reference"](x, weight, outputs)
