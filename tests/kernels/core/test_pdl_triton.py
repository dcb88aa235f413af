"""Launches with PDL compile for the GPUs that support it."""

import pytest
import torch

from foredraft.kernels.core.backend_triton import HAS_TRITON
from foredraft.kernels.core.pdl_triton import PDL_LAUNCH
from foredraft.kernels.core.triton_compile import costs
from foredraft.kernels.model.linear_triton import PROJECT


def overlapping():
    y, squares, weight = torch.empty(6, 512), torch.empty(6, 32), torch.empty(384, 512)
    PROJECT["triton"](y, squares, weight, 1e-6, torch.empty(6, 384), **PDL_LAUNCH)


@pytest.mark.full
@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_launches_with_pdl_compile_for_hopper_and_not_before():
    (cost,) = costs(f"{__file__}:overlapping", ["sm_90"])
    assert cost.spills == 0
    with pytest.raises(RuntimeError, match="does not compile"):
        costs(f"{__file__}:overlapping", ["gfx942"])
