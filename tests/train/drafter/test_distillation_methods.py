from __future__ import annotations

import numpy as np
import pytest
import torch

from foredraft.errors import UserError
from foredraft.train.data.pairs import IGNORE
from foredraft.train.drafter.distillation_methods import (
    METHODS,
    DistillationConfig,
    fixed_summaries,
    step_inputs,
    step_loss,
    token_counts,
)

V = 7


@pytest.fixture
def batch():
    """Two articles; human summaries [2 3 1] and [4 1], the target's [5 1] and [6 6 6]."""
    def summary(*tokens):
        return np.array(tokens, np.uint16)

    return {"article": torch.tensor([0, 1]), "source_ids": torch.ones(2, 3).long(), "source_mask": torch.ones(2, 3).long(),
            "coin": torch.tensor([0.2, 0.8]), "gold": [summary(2, 3, 1), summary(4, 1)],
            "own": [summary(5, 1), summary(6, 6, 6)]}


def random_logits(inputs, seed):
    count = int((inputs["labels"] != IGNORE).sum())
    return torch.randn(count, V, generator=torch.Generator().manual_seed(seed))


def loss_of(method, batch, samples=None):
    inputs = step_inputs(method, batch, samples, 0)
    logits, teacher = random_logits(inputs, 0), random_logits(inputs, 1)
    counts = token_counts(inputs)
    value = step_loss(method, inputs, logits, lambda n: teacher[len(teacher) - counts[1] :], counts)
    return inputs, logits, teacher, counts, value


def test_the_baseline_is_cross_entropy_on_human_summaries_alone(batch):
    inputs, logits, _, counts, value = loss_of(DistillationConfig(loss=1, kd_loss=0), batch)
    assert inputs["labels"].tolist() == [[2, 3, 1], [4, 1, IGNORE]] and counts == (5, 0)
    assert inputs["input_ids"].tolist() == [[0, 2, 3], [0, 4, 1]]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 3, 1, 4, 1]))
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_seq_kd_is_the_weighted_sum_over_both_kinds_of_summaries(batch):
    inputs, logits, _, counts, value = loss_of(DistillationConfig(loss=0.5, kd_loss=2.0), batch)
    assert inputs["source"].tolist() == [0, 1, 0, 1] and counts == (5, 5)
    hard, soft = (torch.nn.functional.cross_entropy(part, torch.tensor(labels))
                  for part, labels in ((logits[:5], [2, 3, 1, 4, 1]), (logits[5:], [5, 1, 6, 6, 6])))
    assert value.item() == pytest.approx((0.5 * hard + 2 * soft).item(), rel=1e-6)


def test_supervised_kd_reads_human_summaries_once_and_is_multiplied_by_t_squared(batch):
    method = DistillationConfig(loss=1, kd_loss=1, distill_method="Supervised_KD", kd_temp=4.0)
    inputs, logits, teacher, counts, value = loss_of(method, batch)
    assert len(inputs["labels"]) == 2 and counts == (5, 5)
    p, q = torch.softmax(teacher / 4, -1), torch.log_softmax(logits / 4, -1)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 3, 1, 4, 1])) \
        + 16 * (p * (p.log() - q)).sum(-1).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_imit_kd_uses_the_teachers_argmax_after_the_drafters_prefixes(batch):
    samples = [np.array([3, 3], np.uint16), np.array([1], np.uint16)]
    inputs, logits, teacher, counts, value = loss_of(DistillationConfig(loss=0, distill_method="Imit_KD"), batch, samples)
    assert inputs["input_ids"].tolist() == [[0, 3], [0, 1]] and counts == (0, 3)
    expected = torch.nn.functional.cross_entropy(logits, teacher.argmax(-1))
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_no_method(batch, name):
    """The loss of a batch is the sum over its sequences without padding."""
    method = DistillationConfig(loss=0, distill_method=name, lmbda=0.0 if name != "MiniLLM" else None, kd_temp=1)
    samples = batch["own"] if name in ("Imit_KD", "MiniLLM") else None
    inputs, logits, teacher, counts, value = loss_of(method, batch, samples)
    parts, start = 0.0, 0
    for b, length in enumerate((inputs["labels"] != IGNORE).sum(1).tolist()):
        part = slice(start, start + length)
        single = {**inputs, "labels": inputs["labels"][b : b + 1, :length], "soft": 1}
        parts += step_loss(method, single, logits[part], lambda n, part=part: teacher[part], counts)
        start += length
    assert value.item() == pytest.approx(parts.item(), rel=1e-5)


def test_shares_of_mixed_data_and_of_on_policy_steps(batch):
    summaries = fixed_summaries(DistillationConfig(distill_method="f_Distill", kd_data="mixed"), batch)
    assert [summary.tolist() for summary in summaries] == [[5, 1], [4, 1]]
    method = DistillationConfig(distill_method="on_policy_GKD", lmbda=0.3)
    steps = [method.is_on_policy(0, step, 2000) for step in range(2000)]
    assert abs(sum(steps) - 600) < 10 * (2000 * 0.3 * 0.7) ** 0.5
    assert steps[:9] == [method.is_on_policy(0, i, 2000) for i in range(9)]


def test_training_on_own_samples_begins_late():
    mini = DistillationConfig(distill_method="MiniLLM")
    assert [mini.is_on_policy(0, step, 10) for step in range(10)] == [False] * 5 + [True] * 5
    assert not any(DistillationConfig(distill_method="MiniLLM", kd_loss=0).is_on_policy(0, step, 10) for step in range(10))
    imitation = DistillationConfig(distill_method="Imit_KD")
    steps = np.array([imitation.is_on_policy(0, step, 4000) for step in range(4000)])
    # the mean of the exponential over the first and the last tenth of the steps
    for part, share in ((steps[:400], 1 - (1 - 0.005**0.1) / (0.1 * np.log(200))), (steps[-400:], 1.0)):
        assert abs(part.sum() - 400 * share) < 10 * (400 * 0.25) ** 0.5
    assert imitation.on_policy(0.0) == 0 and DistillationConfig(distill_method="Imit_KD", lmbda=1.0).on_policy(0.0) == 1


def test_minillm_begins_with_cross_entropy_on_the_targets_summaries(batch):
    method = DistillationConfig(loss=0, distill_method="MiniLLM", kd_temp=1)
    _, logits, _, _, value = loss_of(method, batch, None)
    assert value.item() == pytest.approx(loss_of(DistillationConfig(loss=0), batch, None)[-1].item(), rel=1e-6)
    assert value.item() != pytest.approx(loss_of(method, batch, batch["own"])[-1].item(), rel=1e-3)


@pytest.mark.parametrize(("settings", "message"), [
    ({"distill_method": "Magic"}, "--distill-method is Magic; use Seq_KD"),
    ({"divergence": "l2"}, "--divergence is l2"),
    ({"loss": 0, "kd_loss": 0}, "one positive"),
    ({"kd_temp": 0}, "--kd-temp is 0"),
    ({"lmbda": 1.5}, "--lmbda is 1.5"),
    ({"kd_data": "web"}, "--kd-data is web"),
    ({"teacher_logits": 8, "distill_method": "MiniLLM"}, "--teacher-logits"),
])
def test_invalid_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        DistillationConfig(**settings)
