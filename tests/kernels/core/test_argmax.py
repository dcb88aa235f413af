"""Maximum and argmax: compiled against plain loops."""

import numpy as np
import pytest

from foredraft.kernels.core.argmax import argmax_loop, argmax_reference, largest_loop, largest_reference


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 100, 8193, 32128])
def test_compiled_equals_reference(n):
    draw = np.random.default_rng(n)
    for values in (draw.standard_normal(n), draw.integers(-3, 3, n), np.full(n, -np.inf), -draw.random(n) * 1e30):
        values = values.astype(np.float32)
        assert largest_loop(values) == largest_reference(values)
        assert argmax_loop(values) == argmax_reference(values)


def test_nan_gives_an_index_in_range():
    values = np.array([1.0, np.nan, 2.0], np.float32)
    assert 0 <= argmax_loop(values) < 3
