"""The head over a draft vocabulary in Triton: common and own tokens, copy attention, sequences of one tile, ties."""

import pytest
import torch

from foredraft.bench.gpu.rounding_bounds import rounding, unsigned
from foredraft.kernels.core.backend_triton import HAS_TRITON
from foredraft.kernels.core.triton_compile import costs
from foredraft.kernels.drafting.vocabulary_head_triton import (
    VOCABULARY_CHOOSE,
    VOCABULARY_LOGITS,
    CopyScores,
    DeviceVocabulary,
)

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


def case(B, V, F, S, dtype=torch.float32, own=True):
    """y, head, DeviceVocabulary and CopyScores; sources repeat tokens and hold some of the common ones."""
    draw = torch.Generator().manual_seed(V)
    y, head = torch.randn(B, 24, generator=draw).to(dtype), torch.randn(V, 24, generator=draw).to(dtype)
    common = torch.randperm(V, generator=draw)[:F]
    source = torch.randint(V, (B, S), generator=draw)
    source[:, : S // 2] = common[torch.randint(F, (B, S // 2), generator=draw)]
    lengths = torch.randint(1, S + 1, (B,), generator=draw)
    list = DeviceVocabulary(common, torch.full((B, S if own else 0), -5), torch.zeros(B, dtype=torch.int64),
                            torch.zeros(B, F, dtype=torch.int8))
    for b in range(B if own else 0):
        ids = torch.unique(source[b, : lengths[b]])
        list.own[b, : len(ids)], list.own_counts[b] = ids, len(ids)
        list.left_out[b] = torch.isin(common, ids)
    scores = torch.randn(B, S, generator=draw)
    weights = [scores[b, : lengths[b]] for b in range(B)]
    top = torch.stack([w.max() for w in weights])
    total = torch.stack([(w - w.max()).exp().sum() for w in weights])
    return y, head, list, CopyScores(source, lengths, scores, top, total, 3 * torch.rand(B, generator=draw))


@pytest.mark.parametrize(("B", "V", "F", "S", "dtype", "own", "points"), [
    (1, 16, 16, 5, torch.float32, False, False), (3, 100, 40, 70, torch.float32, True, True),
    (18, 50, 7, 5, torch.bfloat16, True, False)])
def test_logits_and_argmax(B, V, F, S, dtype, own, points):
    y, head, list, pointer = case(B, V, F, S, dtype, own)
    pointer = pointer if points else None
    wanted, magnitude, found = (torch.full((B, V), float("-inf")) for _ in range(3))
    VOCABULARY_LOGITS["reference"](y, head, list, pointer, wanted)
    VOCABULARY_LOGITS["reference"](unsigned(y), unsigned(head), list, pointer, magnitude)
    VOCABULARY_LOGITS["triton"](y, head, list, pointer, found)
    assert torch.equal(found.isinf(), wanted.isinf())
    assert not ((found - wanted).abs() > rounding(24 + S, wanted, magnitude)).any()
    parts = -(-F // 32) + -(-list.own.shape[1] // 32)
    drafted, arrived = torch.full((B, 3), -7), torch.zeros(2, dtype=torch.int32)
    VOCABULARY_CHOOSE["triton"](y, head, list, pointer, drafted[:, 1], torch.full((B * parts,), float("nan")),
                                torch.zeros(B * parts, dtype=torch.int32), arrived)
    assert drafted[:, 1].tolist() == found.argmax(1).tolist() and not arrived.any() and set(drafted[:, 0].tolist()) == {-7}


def test_logits_that_are_not_numbers_give_a_token():
    y, head, list, _ = case(3, 100, 40, 70)
    y[0], head[list.common[3]] = float("nan"), float("nan")
    chosen = torch.full((3,), -7)
    VOCABULARY_CHOOSE["triton"](y, head, list, None, chosen, torch.empty(15), torch.zeros(15, dtype=torch.int32),
                                torch.zeros(1, dtype=torch.int32))
    assert all(0 <= token < 100 for token in chosen.tolist())


def at_real_size():
    """FLAN-T5-XL's width, eight sequences of 512 source tokens."""
    B, V, C, F, S, bf16 = 8, 32128, 2048, 1024, 512, torch.bfloat16
    rows = torch.zeros(B, dtype=torch.int64)
    list = DeviceVocabulary(torch.zeros(F, dtype=torch.int64), torch.zeros(B, S, dtype=torch.int64), rows,
                            torch.zeros(B, F, dtype=torch.int8))
    pointer = CopyScores(list.own, rows, torch.empty(B, S), *(torch.empty(B) for _ in range(3)))
    y, head = torch.empty(B, C, dtype=bf16), torch.empty(V, C, dtype=bf16)
    work = torch.empty(B * 48), torch.empty(B * 48, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    for points in (None, pointer):
        VOCABULARY_LOGITS["triton"](y, head, list, points, torch.empty(B, V))
        VOCABULARY_CHOOSE["triton"](y, head, list, points, torch.zeros(B, 5, dtype=torch.int64)[:, 1], *work)


@pytest.mark.full
def test_the_machine_code_fits_and_does_not_spill():
    found = costs(f"{__file__}:at_real_size")
    assert [cost.kernel for cost in found[::3]] == ["_vocabulary_kernel"] * 4
    for cost in found:
        assert cost.spills <= 8 and cost.shared <= {"sm_80": 163, "sm_90": 227, "gfx942": 64}[cost.target] * 1024, cost
