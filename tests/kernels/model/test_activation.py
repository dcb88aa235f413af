"""Activations against torch's, and compiled against plain loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foredraft.kernels.model.activation import ACTIVATE, ACTIVATIONS

TORCH = {"relu": F.relu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu, "silu": F.silu}


@pytest.mark.parametrize("backend", list(ACTIVATE))
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_torchs(name, gated, backend):
    n, width = 7, 33
    inner = torch.randn(n, 2 * width if gated else width, generator=torch.Generator().manual_seed(0)) * 4
    inner[0, :3] = torch.tensor([-200.0, 200.0, 0.0])
    active = np.full((n, width), np.nan, np.float32)
    ACTIVATE[backend](inner.numpy(), active, ACTIVATIONS.index(name), gated)
    expected = TORCH[name](inner[:, :width].double()) * (inner[:, width:] if gated else 1)
    np.testing.assert_allclose(active, expected.numpy(), rtol=1e-5, atol=2e-6)
