"""The head over the query positions that were read; other outputs are left as they are."""

import numpy as np
import pytest

from foredraft.kernels.model.lm_head import CHOOSE, LOGITS
from foredraft.kernels.model.packing import pack

C, V = 32, 100
READ = [[[True, True, False, False]], [[True, True, True, True]], [[False] * 4], [[True, False, True, True]],
        [[False, True, False, False]], [[True, True, False, False], [True, False, False, False]], [[True] * 4] * 2]


@pytest.mark.parametrize("read", READ)
def test_compiled_equals_reference(read):
    positions = np.where(read, np.arange(4), -1)
    draw = np.random.default_rng(2)
    hidden = draw.standard_normal((*positions.shape, C), dtype=np.float32)
    weight = pack(draw.standard_normal((V, C), dtype=np.float32))
    wanted, found = (np.full((*positions.shape, V), np.nan, np.float32) for _ in range(2))
    LOGITS["reference"](hidden, positions, weight, 0.5, wanted)
    LOGITS["numba"](hidden, positions, weight, 0.5, found)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert (np.isnan(found[..., 0]) == ~np.array(read)).all()
    best, chosen = (np.full(positions.shape, -7) for _ in range(2))
    CHOOSE["reference"](hidden, positions, weight, V, 0.5, best)
    CHOOSE["numba"](hidden, positions, weight, V, 0.5, chosen)
    assert (chosen == best).all()
