"""Uncached tokens of a drafter that caches states by position."""

import numpy as np
import pytest

from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.drafting.num_uncached import NUM_UNCACHED


@pytest.mark.parametrize("backend", ["reference", "numba"] if HAS_NUMBA else ["reference"])
def test_num_uncached(backend):
    tokens = np.array([[0, 5, 6, 7, 9]] * 6)
    fed = np.array([[0, 5, 6, 7, 8], [0, 5, 3, 7, 9], [4, 5, 6, 7, 9], [0, 5, 6, 7, 9], [0, 5, 6, 7, 9], [0, 0, 0, 0, 0]])
    lengths, counts, uncached = np.array([5, 5, 5, 5, 4, 1]), np.array([5, 5, 5, 3, 5, 0]), np.full(6, -1)
    NUM_UNCACHED[backend](tokens, lengths, fed, counts, uncached)
    # last token differs; one in the middle; the first one; too few read; all read; none read
    assert uncached.tolist() == [1, 3, 5, 2, 1, 1]
