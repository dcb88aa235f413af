"""Linear layers for a few rows of activations: a skinny GEMM that streams the weight once.

    x       [M, K] float32    activations
    weight  [N/16, K, 16]     `pack` of an [N, K] matrix: float32, or bfloat16 bits as uint16; N padded with zeros
            [N/16, K + 4, 16] `quantize` of one: int8; the last 64 bytes of a block are its 16 float32 scales
    out     [M, N] float32    x @ W.T, accumulated in float32

Each output is accumulated over k = 0..K-1 in order, one fused multiply-add a step. So the bits of a row do not depend on the
number of rows, and speculative greedy decoding equals plain greedy decoding. `linear_argmax` returns the index of each row's
largest output (the lowest on ties) and never stores the outputs.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop
from foredraft.kernels.core.backend import HAS_NUMBA, njit
from foredraft.kernels.core.gemm_microkernel import LANES, gemm_blocks
from foredraft.kernels.core.workers import get_num_threads, parallel, threads_for

# int8 rows at the end of a block that hold the float32 scales of its 16 outputs.
SCALE_ROWS = 4
# Blocks whose outputs stay in the L1 cache until they are reduced or copied.
CHUNK_BLOCKS = 32
# Blocks that a thread takes at once: as many as a tile of gemm_microkernel.py.
TASK_BLOCKS = 4


def pack(weight: np.ndarray) -> np.ndarray:
    """[N, K] float32, or uint16 bits of bfloat16, to [ceil(N / 16), K, 16], padded with zero rows."""
    N, K = weight.shape
    blocks = -(-N // LANES)
    padded = weight
    if N % LANES:
        padded = np.zeros((blocks * LANES, K), weight.dtype)
        padded[:N] = weight
    return np.ascontiguousarray(padded.reshape(blocks, LANES, K).transpose(0, 2, 1))


def unpack(packed: np.ndarray, outputs: int) -> np.ndarray:
    """The inverse of `pack`: [N/16, K, 16] to [N, K] with N = outputs."""
    blocks, K, _ = packed.shape
    return np.ascontiguousarray(packed.transpose(0, 2, 1)).reshape(blocks * LANES, K)[:outputs]


def quantize(weight: np.ndarray) -> np.ndarray:
    """[N, K] float32 to int8 blocks [ceil(N / 16), K + 4, 16]: symmetric, with scale max|w| / 127 for each output."""
    N, K = weight.shape
    blocks = -(-N // LANES)
    scale = np.ones(blocks * LANES, np.float32)
    largest = np.abs(weight).max(1)
    scale[:N] = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    packed = np.empty((blocks, K + SCALE_ROWS, LANES), np.int8)
    packed[:, :K] = pack(np.rint(weight / scale[:N, None]).astype(np.int8))
    packed[:, K:] = scale.view(np.int8).reshape(blocks, SCALE_ROWS, LANES)
    return packed


def widen(packed: np.ndarray) -> np.ndarray:
    """The float32 values of packed or quantised weights; float32 is returned unchanged."""
    if packed.dtype == np.uint16:
        return (packed.astype(np.uint32) << 16).view(np.float32)
    if packed.dtype == np.int8:
        scale = np.ascontiguousarray(packed[:, -SCALE_ROWS:]).reshape(len(packed), -1).view(np.float32)
        return packed[:, :-SCALE_ROWS] * scale[:, None]
    return packed


@njit()
def inputs_of(packed):
    """K of packed or quantised weights [..., N/16, K or K + 4, 16]."""
    return packed.shape[-2] - (SCALE_ROWS if packed.itemsize == 1 else 0)


def linear_reference(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    W = unpack(widen(weight), outputs).astype(np.float64)
    return np.array([[sum(float(a) * float(b) for a, b in zip(row, w, strict=True)) for w in W] for row in x], np.float32)


def linear_argmax_reference(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    return np.array([int(np.argmax(row)) for row in linear_reference(x, weight, outputs)], np.int64)


@njit()
def _span(x, weight, first, last, out, out_offset):
    """out[:, out_offset + 16 i :][:16] = x @ block (first + i), for blocks first..last-1; out has room for all 16."""
    M, K = x.shape
    w_stride = weight.shape[1] * LANES
    w_at = np.int64(weight.ctypes.data) + first * w_stride * weight.itemsize
    gemm_blocks(np.int64(x.ctypes.data), x.strides[0] // 4, weight, w_at, w_stride, K,
                np.int64(out.ctypes.data) + out_offset * 4, out.strides[0] // 4, M, last - first)


@njit()
def linear_serial(x, weight, out, first, last):
    """Blocks first..last-1 of the outputs, single-threaded, for compiled kernels."""
    N = out.shape[1]
    full = min(last, N // LANES)
    if full > first:
        _span(x, weight, first, full, out, first * LANES)
    if last > full:
        partial = np.empty((x.shape[0], LANES), np.float32)
        _span(x, weight, full, full + 1, partial, 0)
        out[:, full * LANES :] = partial[:, : N - full * LANES]


@parallel
@njit()
def _linear_tasks(first, last, x, weight, out):
    linear_serial(x, weight, out, first * TASK_BLOCKS, min(last * TASK_BLOCKS, weight.shape[0]))


@njit()
def linear_loop(x, weight, out, threads):
    """linear for compiled kernels; every thread streams contiguous runs of blocks."""
    tasks = (weight.shape[0] + TASK_BLOCKS - 1) // TASK_BLOCKS
    _linear_tasks(tasks, threads_for(x.shape[0] * x.shape[1] * out.shape[1], threads), x, weight, out)


@parallel
@njit()
def _scatter_tasks(first, last, x, weight, at, out):
    """Tasks of CHUNK_BLOCKS blocks."""
    N = out.shape[1]
    # outputs are written once, to their final rows: a fresh buffer would cost a page fault every 4 kB
    scores = np.empty((x.shape[0], CHUNK_BLOCKS * LANES), np.float32)
    for task in range(first, last):
        start, stop = task * CHUNK_BLOCKS, min((task + 1) * CHUNK_BLOCKS, weight.shape[0])
        _span(x, weight, start, stop, scores, 0)
        begin, end = start * LANES, min(stop * LANES, N)
        for m in range(x.shape[0]):
            out[at[m], begin:end] = scores[m, : end - begin]


@njit()
def linear_scatter_loop(x, weight, at, out, threads):
    """linear_loop that writes row m to out[at[m]]; at [M] int64."""
    tasks = (weight.shape[0] + CHUNK_BLOCKS - 1) // CHUNK_BLOCKS
    _scatter_tasks(tasks, threads_for(x.shape[0] * x.shape[1] * out.shape[1], threads), x, weight, at, out)


@parallel
@njit()
def _argmax_tasks(first, last, x, weight, outputs, best, best_at):
    """Tasks of CHUNK_BLOCKS blocks: best [tasks, M] is the largest output of each, best_at its index."""
    M = x.shape[0]
    scores = np.empty((M, CHUNK_BLOCKS * LANES), np.float32)
    for task in range(first, last):
        start, stop = task * CHUNK_BLOCKS, min((task + 1) * CHUNK_BLOCKS, weight.shape[0])
        _span(x, weight, start, stop, scores, 0)
        width = min(stop * LANES, outputs) - start * LANES
        for m in range(M):
            at = argmax_loop(scores[m, :width])
            best[task, m], best_at[task, m] = scores[m, at], start * LANES + at


@njit()
def linear_argmax_loop(x, weight, outputs, out, threads):
    M = x.shape[0]
    tasks = (weight.shape[0] + CHUNK_BLOCKS - 1) // CHUNK_BLOCKS
    best, best_at = np.empty((tasks, M), np.float32), np.empty((tasks, M), np.int64)
    _argmax_tasks(tasks, threads_for(M * x.shape[1] * outputs, threads), x, weight, outputs, best, best_at)
    for m in range(M):
        top = np.float32(-np.inf)
        out[m] = 0
        for task in range(tasks):
            if best[task, m] > top:
                top, out[m] = best[task, m], best_at[task, m]


def linear_numba(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    out = np.empty((x.shape[0], outputs), np.float32)
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
