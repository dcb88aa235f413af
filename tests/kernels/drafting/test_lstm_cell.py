"""The LSTM step: numba against the reference."""

import numpy as np
import pytest

from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.drafting.lstm_cell import LSTM
from foredraft.kernels.model.packing import pack


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
@pytest.mark.parametrize(("n", "C", "U", "L"), [(1, 1, 1, 1), (3, 7, 5, 2), (2, 32, 24, 3)])
def test_numba_equals_reference(n, C, U, L):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    B, T = 4, 6
    rows, at = np.array([0, 2, 3])[:n], np.array([0, 4, 1])[:n]
    # no branches, except one in sequence 2
    above = np.tile(np.arange(-1, T - 1), (B, 1))
    above[2, 4] = 1
    rest = [pack(draw(4 * U, 2 * U)) for _ in range(L - 1)]
    weights = (pack(draw(4 * U, C + U)), draw(4 * U), np.stack(rest) if rest else np.zeros((0, 1, 1, 16), np.float32),
               draw(L - 1, 4 * U))
    x, h, c = draw(n, C), draw(B, T, L, U), draw(B, T, L, U)
    # outputs must not be read before they are written
    h[rows, at], c[rows, at] = np.nan, np.nan
    found = {}
    for name, lstm in LSTM.items():
        found[name] = h.copy(), c.copy()
        lstm(x, rows, at, above, *weights, *found[name])
    for ours, reference in zip(found["numba"], found["reference"], strict=True):
        assert np.isfinite(reference).all()
        np.testing.assert_allclose(ours, reference, atol=2e-5, rtol=1e-4)
