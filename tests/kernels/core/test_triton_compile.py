"""Compiling for GPUs that are not present: launches are recorded, and their resources read from the machine code."""

import pytest
import torch

from foredraft.kernels.core.backend_triton import HAS_TRITON, jit, tl
from foredraft.kernels.core.triton_compile import TARGETS, costs, table

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


@jit
def _double_kernel(x, y, n, step, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i * step, 2 * tl.load(x + i, mask=i < n, other=0.0).to(tl.float32), mask=i < n)


def double_at_real_size():
    n = 32128
    _double_kernel[(-(-n // 1024),)](torch.empty(n, dtype=torch.bfloat16), torch.empty(n), n, 1, BLOCK=1024, num_warps=8)


@pytest.mark.full
def test_costs_of_a_launch_on_every_target():
    found = costs(f"{__file__}:double_at_real_size")
    assert [cost.target for cost in found] == list(TARGETS)
    for cost in found:
        assert cost.kernel == "_double_kernel" and cost.warps == 8
        assert cost.registers > 0 and cost.code > 0 and cost.spills == 0, cost
    assert "gfx942" in table(found)


def spoiled():
    _double_kernel[(1,)](torch.empty(8), torch.empty(8), 8, 1, BLOCK=7)


@pytest.mark.full
def test_a_kernel_that_does_not_compile_is_an_error():
    with pytest.raises(RuntimeError, match="does not compile"):
        costs(f"{__file__}:spoiled", ["sm_90"])
