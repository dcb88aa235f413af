from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from doubles import ScriptedDrafter, TableDrafter, TableTarget

from foredraft.bench.harness.alpha import alpha_tv

V, END = 16, 1
SOURCES = [[5, END], [6, 7, END], [8, END]]
# ended inside, ended at once, cut at the limit
OUTPUTS = [[4, 9, 3, END], [END], [7, 7, 2, 6, 5]]
PREFIXES = [(sequence, position) for sequence, ids in enumerate(OUTPUTS) for position in range(len(ids))]


class Target(TableTarget):
    config = SimpleNamespace(d_model=V)

    def reserve(self, batch_size, positions, draft_tokens, source):
        pass


def table(seed: int) -> torch.Tensor:
    return torch.randn(6, V, V, generator=torch.Generator().manual_seed(seed))


def alpha(drafter, temperature: float, batch_size: int = 2) -> float:
    model = SimpleNamespace(target=Target(table(0), end_token=END), drafter=drafter)
    return alpha_tv(model, SOURCES, OUTPUTS, temperature, batch_size)


def distribution(logits: torch.Tensor, sequence: int, position: int, temperature: float) -> torch.Tensor:
    """softmax at one prefix of OUTPUTS, from a table of logits."""
    last = OUTPUTS[sequence][position - 1] if position else 0
    return torch.softmax(logits[position, last] / temperature, -1)


def test_every_prefix_counts_once_when_greedy():
    # wrong(sequence, position): position 1 is the first token after the start token; one batch keeps the sequences' numbers
    drafter = ScriptedDrafter(OUTPUTS, wrong=lambda b, position: position in (2, 5))
    assert alpha(ScriptedDrafter(OUTPUTS), 0, batch_size=3) == 1
    assert alpha(drafter, 0, batch_size=3) == pytest.approx(7 / 10)


def test_nothing_drafted_counts_as_no_overlap():
    drafter = ScriptedDrafter(OUTPUTS, lengths=lambda b, step: int(b == 0))
    assert alpha(drafter, 0, batch_size=3) == pytest.approx(4 / 10)


def test_a_point_mass_counts_what_the_target_gives_it():
    expected = sum(distribution(table(0), b, i, 0.7)[OUTPUTS[b][i]] for b, i in PREFIXES) / len(PREFIXES)
    assert alpha(ScriptedDrafter(OUTPUTS), 0.7, batch_size=3) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_dense_draft_counts_the_overlap_of_the_distributions(temperature):
    distributions = [(distribution(table(0), *prefix, temperature), distribution(table(1), *prefix, temperature))
                     for prefix in PREFIXES]
    expected = sum(torch.minimum(p, q).sum() for p, q in distributions) / len(distributions)
    assert alpha(TableDrafter(table(1)), temperature) == pytest.approx(float(expected), abs=1e-5)
    assert alpha(TableDrafter(table(0)), temperature) == pytest.approx(1, abs=1e-5)
