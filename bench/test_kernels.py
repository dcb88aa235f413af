"""Timed by `make bench`; run once, untimed, by the tests."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.kernels.linear import linear, pack

N, K = 2048, 768


@pytest.mark.parametrize("rows", [1, 6])
def test_linear(benchmark, rows):
    """One weight of FLAN-T5-base's feed-forward, for a plain step and for the verification of five drafts."""
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((N, K), dtype=np.float32)
    packed, x = pack(weight), draw.standard_normal((rows, K), dtype=np.float32)
    out = benchmark(linear, x, packed, N)
    np.testing.assert_allclose(out, x @ weight.T, atol=1e-3)
