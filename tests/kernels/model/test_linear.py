"""Linear layers of few rows: every backend against the reference, and the bits of a row."""

import numpy as np
import pytest
import torch

from foredraft.kernels.model import linear as lin
from foredraft.kernels.model.packing import pack, quantize_int4, quantize_int8, unpack, widen

SHAPES = [(1, 1, 32), (3, 33, 64), (7, 100, 96), (16, 48, 64)]
STORAGES = ["float32", "bfloat16", "int8", "int4"]


def weights(N, K, storage, seed=0):
    """A matrix as it is stored, and its float32 values."""
    matrix = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    if storage in ("int8", "int4"):
        packed = (quantize_int8 if storage == "int8" else quantize_int4)(matrix.numpy())
        return packed, unpack(widen(packed), N)
    if storage == "bfloat16":
        return pack(matrix.bfloat16().view(torch.int16).numpy().view(np.uint16)), matrix.bfloat16().float().numpy()
    return pack(matrix.numpy()), matrix.numpy()


def rows(M, K, seed=1):
    return np.random.default_rng(seed).standard_normal((M, K)).astype(np.float32)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("M, N, K", SHAPES)
def test_numba_equals_the_reference(M, N, K, storage):
    packed, dense = weights(N, K, storage)
    x = rows(M, K)
    reference = lin.linear_reference(x, packed, N)
    # levels of 16 bits: each input is rounded by at most max|x| / 65534
    np.testing.assert_allclose(reference, x @ dense.T, atol=1e-2 if storage in ("int8", "int4") else 1e-4)
    np.testing.assert_allclose(lin.linear_numba(x, packed, N), reference, atol=1e-4)
    if storage in ("int8", "int4"):
        assert (lin.linear_numba(x, packed, N) == reference).all()
    assert lin.linear_argmax_numba(x, packed, N).tolist() == lin.linear_argmax_reference(x, packed, N).tolist()


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_sizes_that_fill_no_block(storage):
    for M, N, K in ((1, 1, 2), (3, 33, 18), (2, 17, 1 if storage != "int8" else 34)):
        packed, dense = weights(N, K, storage)
        np.testing.assert_allclose(lin.linear_numba(rows(M, K), packed, N), rows(M, K) @ dense.T, atol=2e-3)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("N, K", [(8193, 32), (32100, 32), (32128, 32)])
def test_wide_outputs_are_all_written(N, K, storage):
    packed, dense = weights(N, K, storage)
    x = rows(5, K)
    out = np.full((5, N), np.nan, np.float32)
    for threads in (1, 2, 3):
        out[:] = np.nan
        lin.linear_loop(x, packed, out, threads)
        np.testing.assert_allclose(out, x @ dense.T, atol=5e-3)
        best = np.full(5, -1)
        lin.linear_argmax_loop(x, packed, N, best, threads)
        assert best.tolist() == out.argmax(1).tolist()


@pytest.mark.parametrize("storage", STORAGES)
def test_the_bits_of_a_row_do_not_depend_on_the_other_rows(storage):
    N, K = 700, 96
    packed, _ = weights(N, K, storage)
    x = rows(33, K) * np.logspace(-3, 3, 33, dtype=np.float32)[:, None]
    together = lin.linear_numba(x, packed, N)
    for M in range(1, 18):
        assert (lin.linear_numba(x[:M], packed, N) == together[:M]).all()
        assert (lin.linear_numba(np.ascontiguousarray(x[M : M + 3]), packed, N) == together[M : M + 3]).all()
    for threads in (1, 2, 5):
        out = np.empty((33, N), np.float32)
        lin.linear_loop(x, packed, out, threads)
        assert (out == together).all()


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_the_largest_sums_do_not_overflow(storage):
    for K in (64, 768, 5120, 16384):
        packed = (quantize_int8 if storage == "int8" else quantize_int4)(np.full((16, K), -3.0, np.float32))
        for sign in (1, -1):
            np.testing.assert_allclose(lin.linear_numba(np.full((2, K), sign * 7.0, np.float32), packed, 16),
                                       np.full((2, 16), -21.0 * sign * K), rtol=1e-5)


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_rows_of_zeros_and_rows_that_are_not_finite(storage):
    packed, _ = weights(40, 64, storage)
    x = rows(4, 64)
    x[0], x[1, 3], x[2, 5] = 0, np.nan, -np.inf
    out = lin.linear_numba(x, packed, 40)
    assert (out[0] == 0).all() and np.isnan(out[1:3]).all() and np.isfinite(out[3]).all()


def test_argmax_takes_the_lowest_index_on_ties():
    packed, _ = weights(64, 8, "float32")
    packed[:] = 1.0
    for threads in (1, 2):
        best = np.full(2, -1)
        lin.linear_argmax_loop(rows(2, 8), packed, 50, best, threads)
        assert best.tolist() == [0, 0]


def test_argmax_never_returns_a_padding_output():
    packed, _ = weights(33, 8, "float32")
    packed[:] = -1.0
    x = np.ones((1, 8), np.float32)
    assert lin.linear_argmax_numba(x, packed, 33)[0] < 33
