"""top-k and top-p in Triton keep the tokens that the reference keeps, whatever the values and ties."""

import numpy as np
import pytest
import torch

from foredraft.kernels.core.backend_triton import can_launch, is_interpreted
from foredraft.kernels.core.triton_compile import costs
from foredraft.kernels.sampling import top_k_top_p_triton as triton_file
from foredraft.kernels.sampling.top_k_top_p import warp_reference
from foredraft.kernels.sampling.top_k_top_p_triton import top_k_top_p_triton

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not can_launch(), reason="needs triton, with its interpreter or a GPU")]
DEVICE = "cpu" if is_interpreted() else "cuda"
DISTRIBUTIONS = [(1.0, 0, 1.0), (0.5, 5, 1.0), (1.7, 0, 0.6), (0.9, 9, 0.8), (1.0, 1, 1.0), (1.0, 0, 1e-6),
                 (3.0, 10**6, 0.999999), (0.0, 3, 0.5)]


def kept(logits, distributions, dtype=torch.float32):
    """Tokens kept by the kernel, one distribution for each row of logits [B, V]."""
    x = torch.from_numpy(logits).to(dtype).to(DEVICE)[:, None]
    temperature, top_k, top_p = (torch.tensor(column, device=DEVICE) for column in zip(*distributions, strict=True))
    floors, ties = torch.full((len(distributions), 1), torch.nan, device=DEVICE), torch.full((len(distributions), 1), -9,
                                                                                             device=DEVICE).int()
    zeros = torch.zeros(len(distributions), dtype=torch.int64, device=DEVICE)
    top_k_top_p_triton(x.contiguous(), zeros, zeros > 0, temperature, top_k, top_p, floors, ties)
    x = x[:, 0].float()
    ids = torch.arange(x.shape[1], device=DEVICE)
    return ((x > floors) | ((x == floors) & (ids <= ties))).cpu().numpy()


@pytest.mark.first(8)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("V", [2, 16, 100, 8193])
@pytest.mark.parametrize("kind", ["spread", "tied", "equal", "masked"])
def test_keeps_the_tokens_of_the_reference(V, kind, dtype, monkeypatch):
    # a vocabulary of 100 does not fit into a program of 64 tokens
    monkeypatch.setattr(triton_file, "HELD", 64 if V <= 100 else 32768)
    monkeypatch.setattr(triton_file, "TILE", 64 if V <= 100 else 4096)
    draw = np.random.default_rng(V)
    logits = draw.standard_normal((len(DISTRIBUTIONS), V)).astype(np.float32) * 3
    if kind == "tied":
        logits = np.round(logits)
    elif kind == "equal":
        logits[:] = -0.5
    elif kind == "masked":
        logits[:, 1::2] = -np.inf
    logits = torch.from_numpy(logits).to(dtype).float().numpy()
    weights = np.empty(V, np.float32)
    for row, found in enumerate(kept(logits, DISTRIBUTIONS, dtype)):
        # in the state's precision
        temperature, top_k, top_p = (float(np.float32(value)) for value in DISTRIBUTIONS[row])
        if temperature == 0:
            assert found.all()
            continue
        warp_reference(logits[row], temperature, int(top_k), top_p, weights)
        assert ((weights > 0) == (found & (logits[row] > -np.inf))).all(), DISTRIBUTIONS[row]


@pytest.mark.skipif(not is_interpreted(), reason="counts the interpreter's loads")
@pytest.mark.parametrize("distribution", [(1.0, 9, 1.0), (0.9, 0, 0.8), (0.9, 9, 0.8)])
def test_a_row_is_read_at_most_twice(distribution, monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    V, seen, load = 1000, [], InterpreterBuilder.create_masked_load

    def counting(self, pointers, mask, *options):
        seen.append(int(mask.data.sum()) if pointers.data.size >= V else 0)
        return load(self, pointers, mask, *options)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counting)
    kept(np.random.default_rng(1).standard_normal((1, V)).astype(np.float32), [distribution])
    assert V <= sum(seen) <= 2 * V, seen


def at_real_sizes():
    B, R, V = 8, 5, 32128
    ids = torch.zeros(B, dtype=torch.int64)
    for dtype in (torch.bfloat16, torch.float32):
        top_k_top_p_triton(torch.empty(B, R, V, dtype=dtype), ids, ids > 0, torch.empty(B), ids, torch.empty(B),
                           torch.empty(B, R), torch.zeros(B, R, dtype=torch.int32))


@pytest.mark.full
def test_compiled_for_three_machines():
    found = costs(f"{__file__}:at_real_sizes")
    assert [cost.kernel for cost in found[::3]] == ["_top_k_top_p_kernel"] * 2
    assert all(cost.registers <= 128 and cost.spills <= 32 and cost.shared < 16_384 for cost in found), found
