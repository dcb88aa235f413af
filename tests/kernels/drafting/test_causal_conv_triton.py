"""A convolutional layer in Triton against its reference: positions before the start, sequences that are not read."""

import pytest
import torch

from foredraft.kernels.core.backend_triton import HAS_TRITON
from foredraft.kernels.core.triton_compile import costs
from foredraft.kernels.drafting.causal_conv_triton import CONVOLUTION

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
POSITIONS = torch.tensor([[0, 1, 7, -1] + [3] * 14, [0] * 18]).T[:, 0]


@pytest.mark.parametrize(("dtype", "dilation"), [(torch.float32, 2), (torch.bfloat16, 1)])
def test_convolution(dtype, dilation):
    B, T, U = 18, 8, 20
    draw = torch.Generator().manual_seed(1)
    # inputs are rounded to the type of the weights when they are read; these have that precision already
    below = torch.randn(B, T, U, generator=draw).to(dtype).float()
    weight, bias = torch.randn(3, 2 * U, U, generator=draw).to(dtype) / 4, torch.randn(2 * U, generator=draw)
    for b, at in enumerate(POSITIONS.tolist()):
        below[b, at + 1 :] = float("nan")
    results = []
    for name in ("reference", "triton"):
        above = torch.full((B, T, U), float("nan"))
        CONVOLUTION[name](POSITIONS, below, weight, bias, dilation, above)
        results.append(above)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5, equal_nan=True)
    assert int((~results[1].isnan()).sum()) == 17 * U


def at_real_size():
    at = torch.zeros(8, dtype=torch.int64)
    for dtype, U in ((torch.bfloat16, 512), (torch.float32, 128)):
        y = torch.empty(8, 192, U)
        CONVOLUTION["triton"](at, y, torch.empty(3, 2 * U, U, dtype=dtype), torch.empty(2 * U), 4, y)


@pytest.mark.full
def test_the_machine_code_fits_and_does_not_spill():
    found = costs(f"{__file__}:at_real_size")
    assert [cost.kernel for cost in found[::3]] == ["_convolution_kernel"] * 2
    for cost in found:
        assert cost.spills <= 8 and cost.shared <= {"sm_80": 163, "sm_90": 227, "gfx942": 64}[cost.target] * 1024, cost
