from __future__ import annotations

import numpy as np
import pytest

from foredraft.kernels.core.sum_of_exp import sum_of_exp_loop, sum_of_exp_reference


@pytest.mark.parametrize("n", [1, 7, 64, 1001])
def test_numba_agrees_with_the_reference(n):
    scores = np.random.default_rng(n).normal(0, 5, n).astype(np.float32)
    assert sum_of_exp_loop(scores) == pytest.approx(sum_of_exp_reference(scores), rel=1e-6)
    assert sum_of_exp_loop(scores + np.float32(512)) == pytest.approx(sum_of_exp_reference(scores), rel=1e-3)
