"""Samples of a drafter in training and of the mixture with its teacher, compared with the modules' distributions."""

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
SAMPLES = 1500


@pytest.fixture(scope="module")
def world(tiny_checkpoints):
    """The folder of a tiny target, its engine, an LSTM drafter's module and the source's encoding."""
    folder = tiny_checkpoints["v1.0"]
    target = T5(load_weights(folder))
    model = new_drafter(DrafterTrainingConfig(sizes=SIZES), folder).eval()
    with torch.no_grad():
        # a sharp distribution, so that differences are significant
        model.pointer.outer.weight *= 8
    with torch.inference_mode():
        encoded = target.encode(SOURCE)
    return folder, target, model, encoded.clone()


def first_distribution(model, encoded) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.zeros(1, 1).long(), encoded[None], torch.ones(1, len(SOURCE)), SOURCE[None])
    return torch.softmax(logits[0, 0].double(), -1)


def statistic(first: torch.Tensor, distribution: torch.Tensor) -> tuple[float, int]:
    """Chi-square of the first tokens and its degrees of freedom; improbable tokens are one class."""
    likely = distribution * SAMPLES >= 5
    counts = torch.bincount(first, minlength=len(distribution)).double()
    observed = torch.cat((counts[likely], counts[~likely].sum()[None]))
    expected = SAMPLES * torch.cat((distribution[likely], distribution[~likely].sum()[None]))
    return float(((observed - expected) ** 2 / expected.clamp_min(1e-9)).sum()), len(expected) - 1


def draw_samples(world, mix=None):
    _, target, model, encoded = world
    drafter, sources, encodings = drafter_of(model, target.weights), [SOURCE] * SAMPLES, [encoded] * SAMPLES
    if mix is None:
        return student_samples(drafter, target, sources, encodings, 3, seed=4)
    return mixed_samples(drafter, target, sources, encodings, 3, 4, mix)


def test_a_drafters_own_samples_follow_its_distribution(world):
    outputs = draw_samples(world)
    assert all(1 <= len(output) <= 3 and 1 not in output[:-1] for output in outputs)
    assert any(len(output) == 3 for output in outputs)
    value, df = statistic(torch.tensor([int(output[0]) for output in outputs]), first_distribution(world[2], world[3]))
    assert df > 3 and value < df + 10 * (2 * df) ** 0.5
    # the same seed yields the same samples
    assert [output.tolist() for output in draw_samples(world)] == [output.tolist() for output in outputs]


def test_an_eagle_head_continues_from_its_own_features(world, monkeypatch):
    """The greedy sample does not depend on the number of tokens of a call."""
    folder, target, _, encoded = world
    model = new_drafter(DrafterTrainingConfig(drafter="head", sizes=SIZES[1:]), folder)
    with torch.no_grad():
        # its features decide the sample, and not a copy of the end token
        model.pointer.outer.weight *= 8
        model.pointer.gain.bias.fill_(-9)
    drafter = drafter_of(model, target.weights)
    outputs = []
    for ahead in (16, 2):
        monkeypatch.setattr(samples, "AHEAD", ahead)
        outputs += [student_samples(drafter, target, [SOURCE], [encoded], 12, 0, temperature=0.0)[0].tolist()]
    assert outputs[0] == outputs[1] and len(outputs[0]) > 4
    # without the features the sample is another
    lost = property(lambda self: torch.zeros(1, 2, 32), lambda self, value: None)
    monkeypatch.setattr(type(drafter), "features", lost, raising=False)
    assert student_samples(drafter, target, [SOURCE], [encoded], 12, 0, temperature=0.0)[0].tolist() != outputs[0]


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_samples_of_the_mixture_follow_its_distribution(world, mix):
    folder, _, model, encoded = world
    mask = torch.ones(1, len(SOURCE)).long()
    logits = Teacher(folder).logits(torch.zeros(1, 1).long(), encoded[None], mask, torch.ones(1, 1).bool())
    distribution = mix * torch.softmax(logits[0].double(), -1) + (1 - mix) * first_distribution(model, encoded)
    value, df = statistic(torch.tensor([int(output[0]) for output in draw_samples(world, mix)]), distribution)
    assert df > 3 and value < df + 10 * (2 * df) ** 0.5


def test_drafter_of_leaves_the_module_in_training_mode(world):
    _, target, model, _ = world
    model.train()
    drafter_of(model, target.weights)
    assert model.training
    model.eval()
