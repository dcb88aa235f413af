"""Inputs and draft lengths of a neural drafter against plain loops."""

import pytest
import torch

from foredraft.kernels.core.backend_triton import HAS_TRITON
from foredraft.kernels.core.triton_compile import costs
from foredraft.kernels.drafting.drafter_inputs_triton import draft_lengths_triton, drafter_inputs_triton

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
K, END = 3, 1


def state(lengths, limits, widths, finished):
    B = len(lengths)
    tokens = torch.arange(100, 100 + B * 12).view(B, 12)
    return (tokens, torch.tensor(lengths), torch.tensor(finished), torch.tensor(limits), torch.tensor(widths))


def test_the_last_two_tokens_and_the_drafts_that_are_followed():
    tokens, lengths, finished, limits, widths = rows = state(
        [1, 2, 7, 7, 9, 5], [11, 11, 11, 9, 11, 11], [3, 3, 2, 3, 3, 0], [False] * 4 + [True, False])
    temperature = torch.tensor([0.0, 1.0, 0.0, 0.5, 1.0, 0.0])
    read, places = (torch.full((6, 2), -9) for _ in range(2))
    later, dense = torch.full((K, 6), -9), torch.ones(6, dtype=torch.bool)
    drafter_inputs_triton(*rows, temperature, read, places, later, dense)
    assert places.tolist() == [[-1, 0], [0, 1], [5, 6], [5, 6], [-1, -1], [3, 4]]
    for b in range(6):
        for r in range(2):
            assert places[b, r] < 0 or read[b, r] == tokens[b, places[b, r]]
    # three drafts: two are followed; two: one; a limit that leaves one: none
    assert later.T.tolist() == [[1, 2, -1], [2, 3, -1], [7, -1, -1], [-1] * 3, [-1] * 3, [-1] * 3]
    assert dense.tolist() == [False, True, False, True, True, False]


def test_a_draft_ends_at_its_end_token():
    rows = state([1, 1, 1, 1, 1], [11, 11, 11, 3, 11], [3, 3, 2, 3, 3], [False] * 4 + [True])[1:]
    drafted = torch.tensor([[5, 6, 7], [5, END, 7], [5, 6, END], [END, END, 5], [5, 6, 7]])
    counts = torch.full((5,), -9)
    lengths, finished, limits, widths = rows
    draft_lengths_triton(drafted, lengths, finished, limits, widths, END, counts)
    assert counts.tolist() == [3, 2, 2, 1, 0]


def at_real_size():
    B, T = 8, 130
    tokens, column = torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, dtype=torch.int64)
    rows = column, torch.zeros(B, dtype=torch.bool), column, column
    drafter_inputs_triton(tokens, *rows, torch.zeros(B), torch.zeros(B, 2, dtype=torch.int64),
                          torch.zeros(B, 2, dtype=torch.int64), torch.zeros(5, B, dtype=torch.int64),
                          torch.zeros(B, dtype=torch.bool))
    draft_lengths_triton(torch.zeros(B, 5, dtype=torch.int64), *rows, END, column)


@pytest.mark.full
def test_compiled_for_three_machines():
    found = costs(f"{__file__}:at_real_size")
    assert [cost.kernel for cost in found[::3]] == ["_drafter_inputs_kernel", "_draft_lengths_kernel"]
    assert all(cost.spills == 0 and cost.registers <= 64 for cost in found), found
