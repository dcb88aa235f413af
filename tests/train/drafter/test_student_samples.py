"""Samples of a drafter in training: their distribution, and that of the mixture with the teacher, against the module's own."""

from __future__ import annotations

import pytest
import torch

from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.train.drafter import student_samples as samples
from foredraft.train.drafter.distillation_trainer import DrafterTrainingConfig
from foredraft.train.drafter.student_samples import drafter_of, mixed_samples, student_samples
from foredraft.train.drafter.teacher import Teacher
from foredraft.train.drafter.train_drafter import new_drafter

SIZES = (("hidden_size", 8), ("num_heads", 2), ("d_kv", 6), ("d_ff", 16))
SOURCE = torch.tensor([5, 9, 30, 31, 1])
ROWS = 1500


@pytest.fixture(scope="module")
def world(tiny_checkpoints):
    """The folder of a tiny target, its engine, an LSTM drafter's module and the source's encoding."""
    folder = tiny_checkpoints["v1.0"]
    target = T5(load_weights(folder))
    model = new_drafter(DrafterTrainingConfig(sizes=SIZES), folder).eval()
    with torch.no_grad():
        # sharp enough for counts to tell
        model.pointer.outer.weight *= 8
    with torch.inference_mode():
        encoded = target.encode(SOURCE)
    return folder, target, model, encoded.clone()


def first_distribution(model, encoded) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.zeros(1, 1).long(), encoded[None], torch.ones(1, len(SOURCE)), SOURCE[None])
    return torch.softmax(logits[0, 0].double(), -1)


def statistic(first: torch.Tensor, distribution: torch.Tensor) -> tuple[float, int]:
    """chi-square of the first tokens over the likely ids, the rest together."""
    likely = distribution * ROWS >= 5
    counts = torch.bincount(first, minlength=len(distribution)).double()
    observed = torch.cat((counts[likely], counts[~likely].sum()[None]))
    expected = ROWS * torch.cat((distribution[likely], distribution[~likely].sum()[None]))
    return float(((observed - expected) ** 2 / expected.clamp_min(1e-9)).sum()), len(expected) - 1


def draw(world, mix=None):
    _, target, model, encoded = world
    drafter, sources, outputs = drafter_of(model, target.weights), [SOURCE] * ROWS, [encoded] * ROWS
    if mix is None:
        return student_samples(drafter, target, sources, outputs, 3, seed=4)
    return mixed_samples(drafter, target, sources, outputs, 3, 4, mix)


def test_a_drafters_own_samples_follow_its_distribution(world):
    rows = draw(world)
    assert all(1 <= len(row) <= 3 and 1 not in row[:-1] for row in rows) and any(len(row) == 3 for row in rows)
    value, df = statistic(torch.tensor([int(row[0]) for row in rows]), first_distribution(world[2], world[3]))
    assert df > 3 and value < df + 10 * (2 * df) ** 0.5
    # the same seed, the same rows
    assert [row.tolist() for row in draw(world)] == [row.tolist() for row in rows]


def test_a_head_goes_on_from_its_own_states(world, monkeypatch):
    """However many tokens it runs ahead between two looks, its greedy sample is the same."""
    folder, target, _, encoded = world
    model = new_drafter(DrafterTrainingConfig(drafter="head", sizes=SIZES[1:]), folder)
    with torch.no_grad():
        # its states decide, and no copy of the end token
        model.pointer.outer.weight *= 8
        model.pointer.gain.bias.fill_(-9)
    drafter = drafter_of(model, target.weights)
    rows = []
    for ahead in (16, 2):
        monkeypatch.setattr(samples, "AHEAD", ahead)
        rows += [student_samples(drafter, target, [SOURCE], [encoded], 12, 0, temperature=0.0)[0].tolist()]
    assert rows[0] == rows[1] and len(rows[0]) > 4
    # a state that is lost on the way shows
    lost = property(lambda self: torch.zeros(1, 2, 32), lambda self, value: None)
    monkeypatch.setattr(type(drafter), "features", lost, raising=False)
    assert student_samples(drafter, target, [SOURCE], [encoded], 12, 0, temperature=0.0)[0].tolist() != rows[0]


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_the_mixture_is_the_one_asked_for(world, mix):
    folder, _, model, encoded = world
    mask = torch.ones(1, len(SOURCE)).long()
    logits = Teacher(folder).logits(torch.zeros(1, 1).long(), encoded[None], mask, torch.ones(1, 1).bool())
    distribution = mix * torch.softmax(logits[0].double(), -1) + (1 - mix) * first_distribution(model, encoded)
    value, df = statistic(torch.tensor([int(row[0]) for row in draw(world, mix)]), distribution)
    assert df > 3 and value < df + 10 * (2 * df) ** 0.5


def test_listening_leaves_the_module_in_training(world):
    _, target, model, _ = world
    model.train()
    drafter_of(model, target.weights)
    assert model.training
    model.eval()
