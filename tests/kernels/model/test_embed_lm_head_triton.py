"""Embedding, final norm and head in Triton against their references."""

import pytest
import torch

from foredraft.bench.gpu.rounding_bounds import rounding, unsigned
from foredraft.kernels.core.backend_triton import HAS_TRITON
from foredraft.kernels.core.triton_compile import costs
from foredraft.kernels.model.embed_triton import EMBED, FINAL_NORM
from foredraft.kernels.model.lm_head_triton import FUSED_CHOOSE, FUSED_LOGITS, WIDTH

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


def poisoned(*shape, dtype=torch.float32):
    return torch.full(shape, float("nan") if dtype.is_floating_point else -77, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parents", [None, [[-1, 0, 0, 1, 2], [-1, 0, 1, 2, 3]]])
def test_embed_and_final_norm(parents, dtype):
    B, R, C, V = 2, 5, 40, 30
    tokens = torch.randint(V, (B, R), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[3, 4, 5, -1, -1], [0, 1, 2, 3, 4]])
    embedding, norm = torch.randn(V, C).to(dtype), torch.rand(C) + 0.5
    results = []
    for name in ("reference", "triton"):
        x, y, squares = poisoned(B * R, C), poisoned(B * R, C, dtype=dtype), poisoned(B * R, 3)
        visible, hidden = poisoned(B, R, R, dtype=torch.int8), poisoned(B * R, C)
        EMBED[name](tokens, positions, None if parents is None else torch.tensor(parents), embedding, norm, visible, x, y,
                    squares)
        embedded = y.clone()
        FINAL_NORM[name](x, squares, norm, 1e-6, 0.5, hidden, y)
        results.append((visible, x, embedded, squares, hidden, y))
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2 if found.dtype == torch.bfloat16 else 1e-5, atol=1e-5)


def test_final_norm_of_every_second_row_and_strided_tokens():
    C, norm, embedding = 24, torch.rand(24) + 0.5, torch.randn(9, 24)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])[:, 1:]
    results = []
    for name in ("reference", "triton"):
        x, y, squares, hidden = poisoned(4, C), poisoned(4, C), poisoned(4, 2), poisoned(2, C)
        EMBED[name](tokens, torch.tensor([[-1, 0], [3, 4]]), None, embedding, norm, poisoned(2, 2, 2, dtype=torch.int8), x,
                    y, squares)
        FINAL_NORM[name](x, squares, norm, 1e-6, 0.5, hidden, y[:2])
        results.append((hidden, y[:2]))
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)
    assert torch.equal(x[1], embedding[3]) and torch.equal(x[3], embedding[6])


def head_case(M, C, V, dtype):
    generator = torch.Generator().manual_seed(V)
    hidden, weight = torch.randn(M, C, generator=generator), torch.randn(V, C, generator=generator)
    # equal scores: the lowest token must win, within a program and between programs
    for twin in (3, V // 2, V - 1):
        weight[twin] = weight[V // 3]
    return hidden.to(dtype), weight.to(dtype)


def choose(hidden, weight):
    M, parts = hidden.shape[0], -(-weight.shape[0] // WIDTH)
    chosen, arrived = poisoned(M, dtype=torch.int64), torch.zeros(-(-M // 16), dtype=torch.int32)
    FUSED_CHOOSE["triton"](hidden, weight, chosen, poisoned(M, parts), poisoned(M, parts, dtype=torch.int32), arrived)
    assert not arrived.any()
    return chosen


@pytest.mark.first(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("V", "M"), [(16, 1), (100, 18), (100, 70), (8193, 2), (32100, 2), (32128, 2)])
def test_logits_and_argmax(V, M, dtype):
    hidden, weight = head_case(M, 24, V, dtype)
    wanted, found, magnitude = poisoned(M, V), poisoned(M, V), poisoned(M, V)
    FUSED_LOGITS["reference"](hidden, weight, wanted)
    FUSED_LOGITS["reference"](unsigned(hidden), unsigned(weight), magnitude)
    FUSED_LOGITS["triton"](hidden, weight, found)
    assert ((found - wanted).abs() <= rounding(24, wanted, magnitude)).all()
    chosen = poisoned(M, dtype=torch.int64)
    FUSED_CHOOSE["reference"](hidden, weight, chosen)
    assert torch.equal(choose(hidden, weight), chosen)
    assert chosen.tolist() == [row.index(max(row)) for row in found.tolist()]


def test_the_lowest_of_equal_tokens_wins():
    _, weight = head_case(1, 24, 100, torch.float32)
    assert choose(weight[33:34] * 9, weight).tolist() == [3]
    weight[3] = 0
    assert choose(weight[33:34] * 9, weight).tolist() == [33]


def test_logits_that_are_not_numbers_give_a_token():
    hidden, weight = head_case(3, 24, 100, torch.float32)
    hidden[0], weight[7] = float("nan"), float("nan")
    assert all(0 <= token < 100 for token in choose(hidden, weight).tolist())


def test_argmax_and_bits_of_a_row_do_not_depend_on_the_other_rows():
    """Alone, in tiles of 16, 32 and 64 rows, and in two tiles of 64."""
    hidden, weight = head_case(70, 300, 100, torch.bfloat16)
    whole, chosen = poisoned(70, 100), choose(hidden, weight)
    FUSED_LOGITS["triton"](hidden, weight, whole)
    for part in (slice(0, 1), slice(15, 16), slice(3, 20), slice(20, 60), slice(69, 70)):
        found = torch.full_like(whole[part], float("nan"))
        FUSED_LOGITS["triton"](hidden[part].contiguous(), weight, found)
        assert torch.equal(found, whole[part]) and torch.equal(choose(hidden[part].contiguous(), weight), chosen[part])


def ends_at_real_size(M=6):
    V, C, bf16 = 32128, 2048, torch.bfloat16
    embedding, x, y = torch.empty(V, C, dtype=bf16), torch.empty(M, C), torch.empty(M, C, dtype=bf16)
    places, norm, squares = torch.zeros(1, M, dtype=torch.int64), torch.empty(C), torch.empty(M, C // 16)
    EMBED["triton"](places, places, places, embedding, norm, torch.zeros(1, M, M, dtype=torch.int8), x, y, squares)
    FINAL_NORM["triton"](x, squares, norm, 1e-6, 1.0, x, y)
    FUSED_LOGITS["triton"](y, embedding, torch.empty(M, V))
    FUSED_CHOOSE["triton"](y, embedding, torch.zeros(M, dtype=torch.int64), torch.empty(M, 1004),
                           torch.empty(M, 1004, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))


def ends_of_32_rows():
    ends_at_real_size(32)


def ends_of_64_rows():
    ends_at_real_size(64)


@pytest.mark.full
@pytest.mark.parametrize("sizes", ["ends_at_real_size", "ends_of_32_rows", "ends_of_64_rows"])
def test_the_machine_code_fits_and_does_not_spill(sizes):
    found = costs(f"{__file__}:{sizes}")
    assert [cost.kernel for cost in found[::3]] == ["_embed_kernel", "_final_norm_kernel", "_logits_kernel",
                                                    "_choose_kernel"]
    for cost in found:
        # eight bytes of stack are not a spilled register
        assert cost.spills <= 8 and cost.shared <= {"sm_80": 163, "sm_90": 227, "gfx942": 64}[cost.target] * 1024, cost
