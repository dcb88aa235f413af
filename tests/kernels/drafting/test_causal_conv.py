"""The convolutional step: numba against the reference."""

import numpy as np
import pytest

from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.drafting.causal_conv import CNN
from foredraft.kernels.model.packing import pack


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
@pytest.mark.parametrize(("n", "C", "U", "kernel", "dilations"), [
    (1, 1, 1, 1, [1]), (3, 7, 5, 3, [1, 2]), (2, 32, 24, 2, [3]),
])
def test_numba_equals_reference(n, C, U, kernel, dilations):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    B, T, L = 4, 8, len(dilations)
    rows, at = np.array([0, 2, 3])[:n], np.array([0, 7, 2])[:n]
    # no branches, except one in sequence 2
    above = np.tile(np.arange(-1, T - 1), (B, 1))
    above[2, 7], above[2, 5] = 5, 2
    weights = (pack(draw(U, C)), draw(U), np.stack([pack(draw(2 * U, kernel * U)) for _ in dilations]), draw(L, 2 * U),
               np.array(dilations))
    x, h = draw(n, C), draw(B, T, L + 1, U)
    h[rows, at] = np.nan
    found = {}
    for name, cnn in CNN.items():
        found[name] = h.copy()
        cnn(x, rows, at, above, *weights, found[name])
    assert np.isfinite(found["reference"]).all()
    np.testing.assert_allclose(found["numba"], found["reference"], atol=2e-5, rtol=1e-4)
