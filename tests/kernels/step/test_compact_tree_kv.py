"""Compacting the cache of an accepted tree path."""

import numpy as np
import pytest

from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.step.compact_tree_kv import compact_numba, compact_reference


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
def test_accepted_tokens_move_to_their_positions():
    path = np.array([[0, 2, 4, 5, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 2, 5, 0, 0], [0, 3, 4, 0, 0, 0]])
    base = np.array([2, 5, 0, -1])
    k, v = (np.random.default_rng(i).standard_normal((2, 5, 3, 12, 4)).astype(np.float32) for i in range(2))
    for compact in (compact_reference, compact_numba):
        moved = k.copy(), v.copy()
        compact(*moved, base, path)
        for before, after in zip((k, v), moved, strict=True):
            for b, rows in ((0, [0, 2, 4, 5]), (1, [0]), (2, [0, 1, 2, 5])):
                np.testing.assert_array_equal(after[:, b, :, base[b] : base[b] + len(rows)],
                                              before[:, b][:, :, base[b] + np.array(rows)])
                np.testing.assert_array_equal(after[:, b, :, : base[b]], before[:, b, :, : base[b]])
            np.testing.assert_array_equal(after[:, 3:], before[:, 3:])
