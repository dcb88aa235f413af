"""Attention in Triton against the references: ragged lengths, trees, skipped positions, sources of every length."""

import pytest
import torch

from foredraft.bench.gpu.rounding_bounds import attended
from foredraft.kernels.core.backend_triton import HAS_TRITON
from foredraft.kernels.core.triton_compile import costs
from foredraft.kernels.model.cross_attention_triton import FUSED_CROSS_ATTENTION, PAGE, work_size
from foredraft.kernels.model.self_attention_triton import FUSED_SELF_ATTENTION

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
CHAIN = torch.ones(8, 8, dtype=torch.int8).tril()
# the last committed token, two children of it, and a child of each
TREE = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]], dtype=torch.int8)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(kernels, arguments, keys, found):
    """Triton's outputs equal the reference's up to rounding; arguments: queries, keys, values, and the rest."""
    q, k, v, *rest = arguments
    wanted, magnitude = (torch.full_like(found, float("nan")) for _ in range(2))
    kernels["reference"](q, k, v, *rest, wanted)
    kernels["reference"](q, k, v.abs(), *rest, magnitude)
    assert torch.equal(found.isnan(), wanted.isnan())
    over = (found.float() - wanted.float()).abs() - attended(q, k, keys, wanted, magnitude)
    assert not (over > 0).any(), over.nan_to_num(0).max()


def check_self(arguments):
    M, H, D = arguments[0].shape
    found = torch.full((M, H * D), float("nan"), dtype=arguments[0].dtype)
    FUSED_SELF_ATTENTION["triton"](*arguments, found)
    check(FUSED_SELF_ATTENTION, arguments, arguments[1].shape[2], found)


def self_case(positions, visible, dtype, H=3, D=24):
    """Arguments of self-attention; invisible slots hold NaN."""
    B, R = positions.shape
    T = int(positions.max()) + R + 3
    k, v = normal(B, H, T, D, seed=1, dtype=dtype), normal(B, H, T, D, seed=2, dtype=dtype)
    for b in range(B):
        used = int(positions[b, 0]) + R if positions[b].max() >= 0 else 0
        k[b, :, used:], v[b, :, used:] = float("nan"), float("nan")
    return normal(B * R, H, D, dtype=dtype), k, v, positions, visible.expand(B, R, R).contiguous(), normal(H, T, seed=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tree", [False, True])
def test_self_attention(tree, dtype):
    if tree:
        positions, visible = torch.tensor([[0, 1, 1, 2, 2], [70, 71, 71, 72, 72]]), TREE
    else:
        positions, visible = torch.tensor([[0, 1, 2, -1], [62, 63, 64, 65], [130, -1, -1, -1], [-1] * 4]), CHAIN[:4, :4]
    check_self(self_case(positions, visible, dtype))


def test_the_first_token_may_be_query_position_one():
    check_self(self_case(torch.tensor([[-1, 0], [5, 6], [-1, -1]]), CHAIN[:2, :2], torch.float32))


def test_more_than_sixteen_query_positions():
    positions = torch.arange(30, 50)[None].contiguous()
    check_self(self_case(positions, torch.ones(20, 20, dtype=torch.int8).tril(), torch.float32, H=1, D=16))


def test_self_attention_bits_do_not_depend_on_the_other_queries():
    positions = torch.tensor([[60, 61, 62, 63, 64, 65], [7, 8, 9, -1, -1, -1]])
    q, k, v, _, visible, bias = self_case(positions, CHAIN[:6, :6], torch.bfloat16)
    whole = torch.empty(12, 72, dtype=torch.bfloat16)
    FUSED_SELF_ATTENTION["triton"](q, k, v, positions, visible, bias, whole)
    for row in range(6):
        one = torch.empty(1, 72, dtype=torch.bfloat16)
        FUSED_SELF_ATTENTION["triton"](q[row : row + 1], k[:1], v[:1], positions[:1, row : row + 1],
                                       torch.ones(1, 1, 1, dtype=torch.int8), bias, one)
        assert torch.equal(one[0], whole[row])


def cross_case(sources, R, dtype, H=3, D=24, pages=None):
    B = len(sources)
    pages = pages or -(-max(sources) // PAGE)
    generator = torch.Generator().manual_seed(5)
    table = torch.randperm(B * pages, generator=generator).view(B, pages)
    k, v = normal(B * pages, H, PAGE, D, seed=1, dtype=dtype), normal(B * pages, H, PAGE, D, seed=2, dtype=dtype)
    for b, length in enumerate(sources):
        for page in range(pages):
            used = min(max(length - page * PAGE, 0), PAGE)
            k[table[b, page], :, used:], v[table[b, page], :, used:] = float("nan"), float("nan")
    return normal(B * R, H, D, dtype=dtype), k, v, table, torch.tensor(sources)


def cross(arguments, work=None):
    q, k = arguments[:2]
    B, pages = arguments[3].shape
    M, H, D = q.shape
    out = torch.full((M, H * D), float("nan"), dtype=q.dtype)
    arrived = torch.zeros(B * H, dtype=torch.int32)
    FUSED_CROSS_ATTENTION["triton"](*arguments, out, torch.full((work_size(B, M // B, H, pages, D),), float("nan")), arrived)
    assert not arrived.any()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("sources", "R"), [([1], 1), ([63, 64, 65, 130], 3), ([600], 1), ([70], 18)])
def test_cross_attention(sources, R, dtype):
    arguments = cross_case(sources, R, dtype)
    check(FUSED_CROSS_ATTENTION, arguments, max(sources), cross(arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bounds_detect_one_percent_of_a_value(dtype):
    """One value in every page is scaled by 0.99; the comparison must fail."""
    arguments = list(cross_case([130], 3, dtype))
    wrong = [*arguments]
    wrong[2] = wrong[2].clone()
    wrong[2][:, :, 0] *= 0.99 if dtype == torch.float32 else 0.5
    with pytest.raises(AssertionError):
        check(FUSED_CROSS_ATTENTION, arguments, 130, cross(wrong))


def test_cross_attention_bits_do_not_depend_on_batch_queries_or_buffer_sizes():
    arguments = cross_case([70, 600], 6, torch.bfloat16)
    q, k, v, table, sources = arguments
    whole = cross(arguments)
    for b in range(2):
        for row in (0, 5):
            m = b * 6 + row
            one = (q[m : m + 1], k, v, table[b : b + 1], sources[b : b + 1])
            assert torch.equal(cross(one)[0], whole[m])
    roomier = cross_case([70, 600], 6, torch.bfloat16, pages=16)
    for b in range(2):
        for page in range(10):
            roomier[1][roomier[3][b, page]] = k[table[b, page]]
            roomier[2][roomier[3][b, page]] = v[table[b, page]]
    assert torch.equal(cross(roomier), whole)
    # part of a wider table
    assert torch.equal(cross((*roomier[:3], roomier[3][:, :12], roomier[4])), whole)


def attentions_at_real_size():
    """FLAN-T5-XL, six query positions of each of two sequences with 512 source tokens."""
    B, R, H, D, T, pages, bf16 = 2, 6, 32, 64, 160, 8, torch.bfloat16
    q, k = torch.empty(B * R, H, D, dtype=bf16), torch.empty(B, H, T, D, dtype=bf16)
    out = torch.empty(B * R, H * D, dtype=bf16)
    FUSED_SELF_ATTENTION["triton"](q, k, k, torch.zeros(B, R, dtype=torch.int64), torch.zeros(B, R, R, dtype=torch.int8),
                                   torch.empty(H, T), out)
    page = torch.empty(B * pages, H, PAGE, D, dtype=bf16)
    work, arrived = torch.empty(work_size(B, R, H, pages, D)), torch.zeros(B * H, dtype=torch.int32)
    FUSED_CROSS_ATTENTION["triton"](q, page, page, torch.zeros(B, pages, dtype=torch.int64),
                                    torch.zeros(B, dtype=torch.int64), out, work, arrived)


@pytest.mark.full
def test_the_machine_code_fits_and_does_not_spill():
    found = costs(f"{__file__}:attentions_at_real_size")
    assert [cost.kernel for cost in found[::3]] == ["_self_attention_kernel", "_cross_attention_kernel"]
    for cost in found:
        assert cost.spills == 0 and cost.shared <= {"sm_80": 163, "sm_90": 227, "gfx942": 64}[cost.target] * 1024, cost
