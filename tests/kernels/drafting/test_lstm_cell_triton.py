"""Kernels of the recurrent drafters against their references: first and later positions, committed and drafted tokens."""

import pytest
import torch

from foredraft.bench.gpu.rounding_bounds import BFLOAT16
from foredraft.kernels.core.backend_triton import HAS_TRITON
from foredraft.kernels.core.triton_compile import costs
from foredraft.kernels.drafting.lstm_cell_triton import CELL, MIX

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
B, C, U, T = 18, 20, 24, 9
POSITIONS = torch.tensor([0, 1, 5, -1, 8] + [2] * 13)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(wanted, found):
    """Products of bfloat16 are exact in float32; an output stored in bfloat16 may differ by one unit in the last place."""
    share = BFLOAT16 if found.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found, wanted, rtol=share, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("first", "dtype"), [(True, torch.float32), (False, torch.float32), (True, torch.bfloat16)])
def test_cell(first, dtype):
    ids = torch.randint(30, (B, 2), generator=torch.Generator().manual_seed(1))[:, 1]
    below = normal(30, C, dtype=dtype) if first else normal(B, T, C, dtype=dtype)
    weights = normal(4 * U, C, seed=2, dtype=dtype), normal(4 * U, U, seed=3, dtype=dtype) / 5, normal(4 * U, seed=4)
    results = []
    for name in ("reference", "triton"):
        h, c = normal(B, T, U, seed=5, dtype=dtype), normal(B, T, U, seed=6)
        for b, at in enumerate(POSITIONS.tolist()):
            h[b, max(at, 0) :], c[b, max(at, 0) :] = float("nan"), float("nan")
        CELL[name](ids if first else None, POSITIONS, below, *weights, h, c)
        results.append((h, c))
    for wanted, found in zip(*results, strict=True):
        close(wanted, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["query", "normed query", "inner", "outer", "by place"])
def test_mix(kind, dtype):
    """Outputs by position are float32 with either type of weights."""
    h, others, embedding = (normal(*shape, seed=seed, dtype=dtype)
                            for seed, shape in enumerate([(B, T, U), (B, 10), (30, C)]))
    draw = torch.Generator().manual_seed(3)
    tokens, drafted = torch.randint(30, (B, T), generator=draw), torch.randint(30, (B, 6), generator=draw)
    lengths = torch.full((B,), 4)
    N = 17
    weights = (*(normal(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate([(N, U), (N, 10), (3, N, C)], 4)),
               normal(N, seed=7))
    texts = embedding, tokens, lengths, drafted
    if kind == "by place":
        arguments = (None, None, *texts, None, None, weights[2][:1], weights[3], 1.0)
    elif "query" in kind:
        arguments = (h, None, *texts, weights[0], None, *weights[2:], 1.0)
    elif kind == "inner":
        arguments = (h, others, *texts, *weights[:2], weights[2][:1], weights[3], 1.0)
    else:
        arguments = (None, others, None, None, None, None, None, weights[1], None, None, 0.5)
    results = []
    for name in ("reference", "triton"):
        shape = (B, T, N) if kind == "by place" else (B, N - (kind == "inner"))
        out = torch.full(shape, float("nan"), dtype=torch.float32 if kind == "by place" else dtype)
        gain = torch.full((B,), float("nan")) if kind == "inner" else None
        MIX[name](POSITIONS, *arguments, out, gain, kind == "normed query")
        read = POSITIONS >= 0
        if kind == "by place":
            assert int(out.isnan().sum()) == out.numel() - int(read.sum()) * N
            out = out[torch.arange(B), POSITIONS.clamp(min=0)]
        results.append((out[read], torch.zeros(0) if gain is None else gain[read]))
    for wanted, found in zip(*results, strict=True):
        close(wanted, found)
        assert not found.isnan().any()


def test_the_bits_of_a_sequence_do_not_depend_on_the_others():
    embedding, weights = normal(30, C), (normal(4 * U, C, seed=2), normal(4 * U, U, seed=3), normal(4 * U, seed=4))
    ids, results = torch.arange(B), []
    for rows in (slice(0, B), slice(17, 18)):
        h, c = normal(B, T, U, seed=5)[rows].contiguous(), normal(B, T, U, seed=6)[rows].contiguous()
        CELL["triton"](ids[rows], POSITIONS[rows], embedding, *weights, h, c)
        results.append((h[-1], c[-1]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def at_real_size():
    """A drafter with 512 states and four heads at FLAN-T5-XL's width: eight sequences, and one in float32."""
    for dtype, rows, C, U, inner, F in ((torch.bfloat16, 8, 2048, 512, 512, 1024), (torch.float32, 1, 256, 128, 192, 256)):
        def empty(*shape, dtype=dtype):
            return torch.empty(*shape, dtype=dtype)

        ids, at = torch.zeros(rows, 2, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
        embedding, h, c = empty(32128, C), empty(rows, 192, U), torch.empty(rows, 192, U)
        texts = embedding, torch.zeros(rows, 130, dtype=torch.int64), at, torch.zeros(rows, 5, dtype=torch.int64)
        CELL["triton"](ids[:, 1], at, embedding, empty(4 * U, C), empty(4 * U, U), torch.empty(4 * U), h, c)
        CELL["triton"](None, at, h, empty(4 * U, U), empty(4 * U, U), torch.empty(4 * U), h, c)
        MIX["triton"](at, h, None, *texts, empty(inner, U), None, empty(3, inner, C), torch.empty(inner), 1.0,
                      empty(rows, inner), None)
        MIX["triton"](at, h, empty(rows, inner), *texts, empty(F + 1, U), empty(F + 1, inner), empty(1, F + 1, C),
                      torch.empty(F + 1), 1.0, empty(rows, F), torch.empty(rows))
        MIX["triton"](at, None, empty(rows, F), None, None, None, None, None, empty(C, F), None, None, 0.02, empty(rows, C),
                      None)


@pytest.mark.full
def test_the_machine_code_fits_and_does_not_spill():
    found = costs(f"{__file__}:at_real_size")
    assert [cost.kernel for cost in found[::3]] == 2 * (2 * ["_cell_kernel"] + 3 * ["_mix_kernel"])
    for cost in found:
        assert cost.spills <= 8 and cost.shared <= {"sm_80": 163, "sm_90": 227, "gfx942": 64}[cost.target] * 1024, cost
