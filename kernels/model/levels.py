"""Activations as integers, for int8 and int4 weights: each row has one scale, largest |x| / largest level.

    x       [M, K] float32    K is even
    levels  int16             round(x / scale), in tiles of rows as gemm_microkernel.py divides them

A level has as many bits as 32-bit sums of K products with 8-bit weights allow: 14 for K = 2,048, at most 16. That is more
than the 8 bits of llama.cpp and CTranslate2, whose processor instructions add four products at once and not two.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.argmax import larger
from foredraft.kernels.core.backend import njit, overload
from foredraft.kernels.core.gemm_microkernel import INTEGERS, ROW_TILE
from foredraft.kernels.core.workers import parallel, threads_for

# The greatest |level| of K inputs is SUM_LIMIT // K, so that a sum of K products with |weight| <= 127 is below 2^31, and at
# most MOST, so that it fits int16.
SUM_LIMIT, MOST = (2**31 - 1) // 127, 2**15 - 1
# What an element costs, in multiply-adds of a product.
WORK = 8


def levels_reference(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integer levels [M, K] of float32 rows, and the float32 scale of each row [M]."""
    top = np.float32(min(MOST, SUM_LIMIT // x.shape[1]))
    largest = np.abs(x).max(1)
    rate = np.where(largest > 0, top / np.where(largest > 0, largest, 1), 0).astype(np.float32)
    return np.rint(x * rate[:, None]).astype(np.int64), (largest / top).astype(np.float32)


@parallel
@njit(fastmath={"reassoc", "nsz"}, error_model="numpy")
def _levels_tiles(first, last, x, top, levels):
    M, K = x.shape
    tiles, rows = levels.shape[0], levels.shape[2]
    # contiguous, so that these loops are vectorised; the pairs are spread afterwards
    of_row = np.empty(K, np.int16)
    pairs = of_row.view(np.int32)
    for tile in range(first, last):
        scales = levels[tile, K:].reshape(2 * rows).view(np.float32)
        spread = levels[tile, :K].reshape(K * rows).view(np.int32)
        start, stop = M * tile // tiles, M * (tile + 1) // tiles
        for m in range(start, stop):
            # `larger` may drop a NaN; `total` carries it to the scale
            largest, total = np.float32(0.0), np.float32(0.0)
            for k in range(K):
                largest = larger(largest, abs(x[m, k]))
                total += x[m, k] * np.float32(0.0)
            rate = top / largest if largest > 0 else np.float32(0.0)
            for k in range(K):
                of_row[k] = np.int16(np.rint(x[m, k] * rate))
            for k in range(K // 2):
                spread[k * rows + m - start] = pairs[k]
            scales[m - start] = largest / top + total


def levels_loop(x, weight, threads):
    """[tiles, K + 2, rows] int16: each tile is [K/2, rows, 2] levels, then the float32 scales. Float weights need nothing.

    A row that is not finite has the scale NaN, and so has every output of it. For compiled kernels.
    """
    raise NotImplementedError("levels_loop is for compiled kernels; in Python use levels_reference")


@overload(levels_loop)
def _by_storage(x, weight, threads):
    # a branch on is_integer would compile the integers' kernels for float weights too
    if str(weight.dtype) in INTEGERS:
        return lambda x, weight, threads: _integer_levels(x, threads)
    return lambda x, weight, threads: np.empty((0, 0, 0), np.int16)


@njit()
def _integer_levels(x, threads):
    M, K = x.shape
    levels = np.empty(((M + ROW_TILE - 1) // ROW_TILE, K + 2, ROW_TILE), np.int16)
    top = np.float32(min(MOST, SUM_LIMIT // K))
    _levels_tiles(levels.shape[0], threads_for(M * K * WORK, threads), x, top, levels)
    return levels
