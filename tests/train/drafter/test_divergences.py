from __future__ import annotations

import itertools
import math

import pytest
import torch

from foredraft.train.drafter.divergences import (
    DIVERGENCES,
    blended_loss,
    bucket_divergence,
    divergence_and_gradient,
    log_probability,
    policy_weights,
)

CASES = [*((kind, 0.5) for kind in DIVERGENCES), ("jsd", 0.1), ("jsd", 0.9), ("jsd", 0), ("jsd", 1)]


def reference(kind: str, p: torch.Tensor, q: torch.Tensor, beta: float) -> torch.Tensor:
    """The divergence of two distributions [V] by its formula."""
    def kl(a, b):
        return (a * (a / b).log()).sum()

    if kind == "fkl" or (kind == "jsd" and beta == 0):
        return kl(p, q)
    if kind == "rkl" or (kind == "jsd" and beta == 1):
        return kl(q, p)
    if kind == "tvd":
        return (p - q).abs().sum() / 2
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("kind", "beta"), CASES)
@pytest.mark.parametrize("temperature", [1.0, 8.0])
def test_blended_loss_and_its_gradient_equal_the_formula(kind, beta, temperature):
    # more tokens than a block, and a teacher for the last ones only
    N, M, V = 150, 90, 11
    logits, teacher = normal(N, V, seed=0).requires_grad_(), normal(M, V, seed=1)
    labels = torch.arange(N) % V
    hard, soft = normal(N, seed=2).abs(), normal(M, seed=3).abs()
    expected = -(hard * torch.log_softmax(logits, -1)[torch.arange(N), labels]).sum()
    for m in range(M):
        p, q = (torch.softmax(x / temperature, -1) for x in (teacher[m], logits[N - M + m]))
        expected = expected + soft[m] * temperature**2 * reference(kind, p, q, beta)
    total, cross_entropy, divergence = blended_loss(logits, labels, hard, soft, teacher, kind, beta, temperature)
    assert total.item() == pytest.approx(expected.item(), rel=1e-9)
    ours, theirs = (torch.autograd.grad(3 * loss, logits)[0] for loss in (total, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)
    assert not cross_entropy.requires_grad and not divergence.requires_grad


def test_known_values():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    values = {kind: divergence_and_gradient(q.log(), p.log(), kind)[0].item() for kind in DIVERGENCES}
    assert values["tvd"] == pytest.approx(0.4)  # the acceptance probability is 0.6
    assert values["fkl"] == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5))
    assert values["rkl"] == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_tokens_without_mass_contribute_nothing(kind):
    p, q = torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[0.0, 0.5, 0.5]])
    loss, gradient = divergence_and_gradient(q.log(), p.log(), kind)
    assert loss.item() == pytest.approx(0, abs=1e-7) and gradient.isfinite().all()


@pytest.mark.parametrize(("kind", "beta"), CASES)
def test_buckets_of_all_tokens_equal_the_divergence_and_fewer_are_a_lower_bound(kind, beta):
    logits, teacher = normal(4, 9, seed=4).float(), normal(4, 9, seed=5).float()
    full, _ = divergence_and_gradient(torch.log_softmax(logits / 2, -1), torch.log_softmax(teacher / 2, -1), kind, beta)
    found = []
    for k in (2, 5, 9):
        top = torch.log_softmax(teacher / 2, -1).topk(k)
        found.append(bucket_divergence(logits, top.indices, top.values, kind, beta, 2.0))
    torch.testing.assert_close(found[-1], full, rtol=1e-3, atol=1e-5)
    assert (found[0] <= found[1] + 1e-6).all() and (found[1] <= found[2] + 1e-6).all()


def sequences(V: int, T: int):
    return list(itertools.product(range(V), repeat=T))


def log_probabilities(table: torch.Tensor, y: tuple[int, ...]) -> torch.Tensor:
    """[T], of each token of y under logits [T, V (previous token), V]."""
    previous = (0, *y[:-1])
    return torch.stack([torch.log_softmax(table[t, previous[t]], -1)[y[t]] for t in range(len(y))])


def test_the_policy_gradient_is_the_gradient_of_the_reverse_kl():
    """Over every sequence of a tiny vocabulary, weighted by its probability (Gu et al. 2024, eq. 2 to 5)."""
    V, T = 3, 3
    student, teacher = normal(T, V, V, seed=6).requires_grad_(), normal(T, V, V, seed=7)
    exact = sum(log_probabilities(student, y).sum().exp()
                * (log_probabilities(student, y).sum() - log_probabilities(teacher, y).sum()) for y in sequences(V, T))
    expected = torch.autograd.grad(exact, student)[0]
    estimate = torch.zeros_like(expected)
    for y in sequences(V, T):
        log_q, log_p = log_probabilities(student, y).detach(), log_probabilities(teacher, y)
        w, later = policy_weights(log_p, log_q, [T], 0.0, normalise=False)
        previous = (0, *y[:-1])
        logits, teacher_logits = (torch.stack([table[t, previous[t]] for t in range(T)]) for table in (student, teacher))
        total, _, _ = blended_loss(logits, torch.tensor(y), later, w, teacher_logits, "rkl")
        estimate += log_q.sum().exp() * torch.autograd.grad(total, student)[0]
    torch.testing.assert_close(estimate, expected, rtol=1e-6, atol=1e-9)


def test_importance_and_length_normalisation():
    log_p, log_q = torch.tensor([0.5, 0.2, 0.1, 0.4]).log(), torch.tensor([0.1, 0.2, 0.4, 0.8]).log()
    w, later = policy_weights(log_p, log_q, [3, 1], 0.2)
    ratios = torch.tensor([0.5 / 0.1, 1.0, 0.1 / 0.4, 0.4 / 0.8])
    torch.testing.assert_close(w, 1 / (0.2 * ratios + 0.8))
    # the number of following tokens is 2 for the first, 1 for the second, 0 for the last of a sequence
    torch.testing.assert_close(later / w, torch.tensor([math.log(0.25) / 2, math.log(0.25), 0.0, 0.0]))


def test_log_probability_over_blocks():
    logits, tokens = normal(150, 7, seed=8), torch.arange(150) % 7
    expected = torch.log_softmax(logits, -1)[torch.arange(150), tokens].float()
    torch.testing.assert_close(log_probability(logits, tokens), expected)
