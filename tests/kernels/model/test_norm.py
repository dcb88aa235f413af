"""T5's layer norm: backends against the reference and against transformers."""

import numpy as np
import pytest
import torch

from foredraft.kernels.model.norm import norm_numba, norm_reference


@pytest.mark.parametrize("M, C", [(1, 1), (2, 7), (5, 48), (1, 256)])
def test_numba_equals_the_reference_and_transformers(M, C):
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    rng = np.random.default_rng(M * C)
    x, weight = rng.standard_normal((M, C)).astype(np.float32), rng.standard_normal(C).astype(np.float32)
    theirs = T5LayerNorm(C, eps=1e-6)
    theirs.weight.data = torch.from_numpy(weight)
    reference = norm_reference(x, weight, 1e-6)
    np.testing.assert_allclose(reference, theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(norm_numba(x, weight, 1e-6), reference, atol=1e-5)


def test_the_bits_of_a_row_do_not_depend_on_the_other_rows():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((9, 100)).astype(np.float32), rng.standard_normal(100).astype(np.float32)
    together = norm_numba(x, weight, 1e-6)
    assert all((norm_numba(x[i : i + 1], weight, 1e-6) == together[i]).all() for i in range(9))
