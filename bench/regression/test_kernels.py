"""Kernels at FLAN-T5-base's sizes. Timed by `make bench`; run once, untimed, by the tests."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.model.attention import PAGE, cross_attention, new_pages, self_attention
from foredraft.kernels.model.linear import linear
from foredraft.kernels.model.norm import NORM
from foredraft.kernels.model.packing import pack
from foredraft.kernels.verify.accept import ACCEPT_GREEDY, ACCEPT_SAMPLED

N, C, V, H, D = 2048, 768, 32128, 12, 64
BACKEND = "numba" if HAS_NUMBA else "reference"


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("R", [1, 6])
def test_linear(benchmark, R):
    """One weight of the feed-forward, for a plain step and for the verification of five drafts."""
    weight, x = normal(N, C), normal(R, C)
    out = benchmark(linear, x, pack(weight), N)
    np.testing.assert_allclose(out, x @ weight.T, atol=1e-3)


def test_norm(benchmark):
    out = benchmark(NORM[BACKEND], normal(6, C), np.ones(C, np.float32), 1e-6)
    assert out.shape == (6, C)


@pytest.mark.parametrize("R", [1, 6])
def test_self_attention(benchmark, R):
    T, position = 160, 64
    keys, positions = normal(1, H, T, D), position + np.arange(R)[None]
    out = benchmark(self_attention, normal(R, H, D), np.zeros(R, np.int64), np.arange(R), positions,
                    np.arange(-1, R - 1)[None], keys, keys, normal(H, T))
    assert np.isfinite(out).all()


@pytest.mark.parametrize("R", [1, 6])
def test_cross_attention(benchmark, R):
    pages = 8
    pages_k, pages_v = new_pages(pages, H, D)
    pages_k[:], pages_v[:] = 0.1, 0.2
    out = benchmark(cross_attention, normal(R, H, D), np.zeros(R, np.int64), pages_k, pages_v, np.arange(pages)[None],
                    np.array([pages * PAGE]))
    np.testing.assert_allclose(out, 0.2, rtol=1e-4)


def test_accept_greedily(benchmark):
    B, K = 32, 5
    chosen, drafts = np.ones((B, K + 1), np.int64), np.ones((B, K), np.int64)
    tokens, path, counts = np.zeros((B, K + 1), np.int64), np.zeros((B, K + 1), np.int64), np.zeros(B, np.int64)
    benchmark(ACCEPT_GREEDY[BACKEND], chosen, drafts, np.full(B, K), np.tile(np.arange(K), (B, 1)), tokens, counts, path)
    assert (counts == K + 1).all()


def test_accept_samples(benchmark):
    """Point masses at T=1: a draw from the distribution of every position that is reached."""
    B, K = 2, 5
    logits, drafts = np.zeros((B, K + 1, V), np.float32), np.ones((B, K), np.int64)
    logits[:, :, 1] = 50
    tokens, path, counts = np.zeros((B, K + 1), np.int64), np.zeros((B, K + 1), np.int64), np.zeros(B, np.int64)
    benchmark(ACCEPT_SAMPLED[BACKEND], logits, drafts, np.full(B, K), np.tile(np.arange(K), (B, 1)), np.zeros(B, bool),
              np.empty((0, 0, 0), np.float32), np.empty((0, 0)), np.ones(B, np.float32), np.zeros(B, np.int64),
              np.ones(B, np.float32), np.arange(B), np.ones(B, np.int64), tokens, counts, path)
    assert (counts == K + 1).all()
