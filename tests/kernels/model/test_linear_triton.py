"""Fused linear layers against their references; one reduction order for any number of rows."""

import pytest
import torch

from foredraft.bench.gpu.rounding_bounds import rounding, unsigned
from foredraft.kernels.core.backend_triton import HAS_TRITON
from foredraft.kernels.core.triton_compile import TARGETS, costs
from foredraft.kernels.model.linear_triton import ADD, GATE, PROJECT, QKV, tile

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


def rows_of(M, C, dtype, seed=0):
    """x, y, squares as the previous kernel writes them."""
    x = torch.randn(M, C, generator=torch.Generator().manual_seed(seed))
    squares = torch.zeros(M, -(-C // 16))
    squares[:, -1] = x.square().sum(1)
    return x, x.to(dtype), squares


def weight_of(N, K, dtype, seed=1):
    return (torch.randn(N, K, generator=torch.Generator().manual_seed(seed)) / K**0.5).to(dtype)


def check(kernels, terms, poisoned, *arguments, into=()):
    """Triton's outputs, checked against the reference's up to the rounding of sums of that many terms.

    Outputs are copies of `into`, and buffers filled with NaN.
    """
    results = []
    for name, sign in (("reference", lambda value: value), ("reference", unsigned), ("triton", lambda value: value)):
        outputs = [torch.full(shape, float("nan"), dtype=dtype) for shape, dtype in poisoned]
        outputs = [*(sign(tensor.clone()) for tensor in into), *outputs]
        kernels[name](*map(sign, arguments), *outputs)
        results.append(outputs)
    for wanted, magnitude, found in zip(*results, strict=True):
        assert torch.equal(found.isnan(), wanted.isnan())
        over = (found.float() - wanted.float()).abs() - rounding(terms, wanted, magnitude)
        assert not (over > 0).any(), over.nan_to_num(0).max()
    return results[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("M", "C", "N"), [(1, 16, 16), (5, 40, 24), (18, 272, 33), (70, 300, 33)])
def test_project(M, C, N, dtype):
    _, y, squares = rows_of(M, C, dtype)
    check(PROJECT, C, [((M, N), dtype)], y, squares, weight_of(N, C, dtype), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", range(4))
@pytest.mark.parametrize("gated", [True, False])
def test_gate(activation, gated, dtype):
    M, C, F = 7, 40, 24
    _, y, squares = rows_of(M, C, dtype)
    weight = weight_of(2 * F if gated else F, C, dtype)
    check(GATE, C, [((M, F), dtype)], y, squares, weight, 1e-6, activation, gated)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("M", "C", "K"), [(1, 16, 16), (5, 40, 24), (18, 33, 272), (70, 40, 24)])
def test_add(M, C, K, dtype):
    x, _, _ = rows_of(M, C, dtype)
    inputs, norm = rows_of(M, K, dtype, seed=2)[1], torch.rand(C) + 0.5
    shapes = [((M, C), dtype), ((M, -(-C // 16)), torch.float32)]
    added, _, squares = check(ADD, K, shapes, inputs, weight_of(C, K, dtype), norm, into=[x])
    exact = torch.nn.functional.pad(added.double().square(), (0, -C % 16)).unflatten(1, (-1, 16)).sum(2)
    assert ((squares - exact).abs() <= rounding(16, squares, exact)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qkv_writes_the_slots_of_positions_that_are_read(dtype):
    B, R, H, D, C, T = 3, 6, 3, 24, 40, 20
    _, y, squares = rows_of(B * R, C, dtype)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [9, 10, 11, -1, -1, -1], [-1] * 6])
    shapes = [((B * R, H, D), dtype), ((B, H, T, D), dtype), ((B, H, T, D), dtype)]
    found = check(QKV, C, shapes, y, squares, weight_of(3 * H * D, C, dtype), 1e-6, positions)
    assert found[1][1, :, 11].isfinite().all() and found[1][1, :, 12:].isnan().all() and found[2][2].isnan().all()


def all_four(rows, M, dtype):
    """All outputs of the four kernels for some of M rows."""
    C, F, H, D = 272, 40, 2, 24
    x, y, squares = rows_of(M, C, dtype)
    x, y, squares = (tensor[rows].contiguous() for tensor in (x, y, squares))
    active, m = rows_of(M, F, dtype, seed=2)[1][rows].contiguous(), len(x)
    projected, gated = torch.empty(m, 48, dtype=dtype), torch.empty(m, F, dtype=dtype)
    q, k, v = torch.empty(m, H, D, dtype=dtype), *(torch.empty(m, H, 1, D, dtype=dtype) for _ in range(2))
    PROJECT["triton"](y, squares, weight_of(48, C, dtype), 1e-6, projected)
    GATE["triton"](y, squares, weight_of(2 * F, C, dtype), 1e-6, 1, True, gated)
    QKV["triton"](y, squares, weight_of(3 * H * D, C, dtype), 1e-6, torch.zeros(m, 1, dtype=torch.int64), q, k, v)
    y, squares = torch.empty_like(y), torch.empty_like(squares)
    ADD["triton"](active, weight_of(C, F, dtype), torch.ones(C), x, y, squares)
    return projected, gated, q, k, v, x, y, squares


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_of_a_row_do_not_depend_on_the_other_rows(dtype):
    """Alone, in tiles of 16, 32 and 64 rows, and in two tiles of 64."""
    M = 80
    whole = all_four(slice(None), M, dtype)
    for part in (slice(0, 1), slice(9, 16), slice(M - 1, M), slice(3, 20), slice(M - 40, M)):
        for found, wanted in zip(all_four(part, M, dtype), whole, strict=True):
            assert torch.equal(found, wanted[part])


def test_tiles_read_weights_once_for_up_to_64_rows():
    assert [tile(rows)[0] for rows in (1, 16, 17, 32, 33, 64, 65, 768)] == [16, 16, 32, 32, 64, 64, 64, 64]
    assert tile(64, is_narrow=False) == tile(1)


def launches_of(M, C, H, F):
    """Launches of the four kernels at a model's sizes, for M query positions of one sequence."""
    D, bf16 = 64, torch.bfloat16
    y, squares = torch.empty(M, C, dtype=bf16), torch.empty(M, C // 16)
    q, k = torch.empty(M, H, D, dtype=bf16), torch.empty(1, H, 160, D, dtype=bf16)
    QKV["triton"](y, squares, torch.empty(3 * H * D, C, dtype=bf16), 1e-6, torch.zeros(1, M, dtype=torch.int64), q, k, k)
    PROJECT["triton"](y, squares, torch.empty(H * D, C, dtype=bf16), 1e-6, torch.empty(M, H * D, dtype=bf16))
    active = torch.empty(M, F, dtype=bf16)
    GATE["triton"](y, squares, torch.empty(2 * F, C, dtype=bf16), 1e-6, 1, True, active)
    ADD["triton"](active, torch.empty(C, F, dtype=bf16), torch.empty(C), torch.empty(M, C), y, squares)


XL, OTHERS = (2048, 32, 5120), ((512, 6, 1024), (768, 12, 2048), (1024, 16, 2816))
KERNELS = ["_qkv_kernel", "_project_kernel", "_gate_kernel", "_add_kernel"]


def xl():
    launches_of(6, *XL)


def xl_larger_tiles():
    launches_of(32, *XL)
    launches_of(64, *XL)


def small_base_large():
    for sizes in OTHERS:
        launches_of(6, *sizes)


def small_base_large_larger_tiles():
    for sizes in OTHERS:
        launches_of(32, *sizes)
        launches_of(64, *sizes)


# AMD takes no larger tiles
@pytest.mark.full
@pytest.mark.parametrize(("sizes", "targets", "times"), [
    ("xl", tuple(TARGETS), 1), ("xl_larger_tiles", ("sm_80", "sm_90"), 2),
    pytest.param("small_base_large", tuple(TARGETS), 3, marks=pytest.mark.slow),
    pytest.param("small_base_large_larger_tiles", ("sm_80", "sm_90"), 6, marks=pytest.mark.slow)])
def test_the_machine_code_fits_and_does_not_spill(sizes, targets, times):
    found = costs(f"{__file__}:{sizes}", targets)
    assert [cost.kernel for cost in found[:: len(targets)]] == KERNELS * times
    for cost in found:
        assert cost.spills == 0 and cost.shared <= {"sm_80": 163, "sm_90": 227, "gfx942": 64}[cost.target] * 1024, cost
