"""Linear layers of few rows: every backend against the reference, and the bits of a row."""

import numpy as np
import pytest
import torch

from foredraft.kernels.model import linear as lin

SHAPES = [(1, 1, 2), (3, 33, 19), (7, 100, 48), (16, 48, 64)]


def weights(N, K, dtype, seed=0):
    matrix = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    if dtype == "int8":
        packed = lin.quantize(matrix.numpy())
        return packed, lin.unpack(lin.widen(packed), N)
    if dtype == "bfloat16":
        return lin.pack(matrix.bfloat16().view(torch.int16).numpy().view(np.uint16)), matrix.bfloat16().float().numpy()
    return lin.pack(matrix.numpy()), matrix.numpy()


def rows(M, K, seed=1):
    return np.random.default_rng(seed).standard_normal((M, K)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("M, N, K", SHAPES)
def test_numba_equals_the_reference(M, N, K, dtype):
    packed, dense = weights(N, K, dtype)
    x = rows(M, K)
    reference = lin.linear_reference(x, packed, N)
    np.testing.assert_allclose(reference, x @ dense.T, atol=1e-4)
    np.testing.assert_allclose(lin.linear_numba(x, packed, N), reference, atol=1e-4)
    assert lin.linear_argmax_numba(x, packed, N).tolist() == lin.linear_argmax_reference(x, packed, N).tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("N, K", [(8193, 24), (32100, 16), (32128, 16)])
def test_wide_outputs_are_all_written(N, K, dtype):
    packed, dense = weights(N, K, dtype)
    x = rows(5, K)
    out = np.full((5, N), np.nan, np.float32)
    for threads in (1, 2, 3):
        out[:] = np.nan
        lin.linear_loop(x, packed, out, threads)
        np.testing.assert_allclose(out, x @ dense.T, atol=1e-3)
        best = np.full(5, -1)
        lin.linear_argmax_loop(x, packed, N, best, threads)
        assert best.tolist() == out.argmax(1).tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_bits_of_a_row_do_not_depend_on_the_other_rows(dtype):
    N, K = 700, 96
    packed, _ = weights(N, K, dtype)
    x = rows(33, K)
    together = lin.linear_numba(x, packed, N)
    for M in range(1, 18):
        assert (lin.linear_numba(x[:M], packed, N) == together[:M]).all()
        assert (lin.linear_numba(np.ascontiguousarray(x[M : M + 3]), packed, N) == together[M : M + 3]).all()
    for threads in (1, 2, 5):
        out = np.empty((33, N), np.float32)
        lin.linear_loop(x, packed, out, threads)
        assert (out == together).all()


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


@pytest.mark.parametrize("N", [16, 33])
def test_unpack_inverts_pack(N):
    matrix = rows(N, 7)
    assert (lin.unpack(lin.pack(matrix), N) == matrix).all()


def test_quantised_weights_are_within_half_a_step():
    matrix = rows(33, 20)
    matrix[7] = 0.0
    matrix[8] *= 1e-3
    error = np.abs(lin.unpack(lin.widen(lin.quantize(matrix)), 33) - matrix).max(1)
    assert (error <= np.abs(matrix).max(1) / 127 * 0.501).all()
    assert error[7] == 0.0
