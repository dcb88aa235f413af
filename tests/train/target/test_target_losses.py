import math

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from foredraft.train.data.pairs import IGNORE
from foredraft.train.target.target_losses import (
    earlier_tokens,
    repeated_ngrams,
    repetition_loss,
    target_loss,
    vocabulary_loss,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", tie_word_embeddings=True, dropout_rate=0.0, decoder_start_token_id=0,
        )
    )  # fmt: skip


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(2, 40, (3, 7), generator=draw)
    labels[0, 5:] = IGNORE
    labels[1, :2] = IGNORE
    return {
        "input_ids": torch.randint(2, 40, (3, 9), generator=draw),
        "attention_mask": torch.ones(3, 9, dtype=torch.long),
        "decoder_input_ids": torch.randint(2, 40, (3, 7), generator=draw),
        "labels": labels,
    }


def test_without_penalty_loss_and_gradient_equal_transformers(model, batch):
    model.zero_grad()
    expected = model(**batch).loss
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    loss = target_loss(model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-6, msg=name)


def test_unlikelihood_equals_values_by_hand():
    # one hidden unit, logits (0, log 2, log 5): p = 1/8, 2/8, 5/8 at each of three positions
    hidden = torch.ones(3, 1)
    embedding = torch.tensor([[0.0], [math.log(2)], [math.log(5)]])
    labels = torch.tensor([[2, 1, 2]])
    candidates, negative = earlier_tokens(labels)
    # position 0: none; position 1 (label 1): 2; position 2 (label 2): 1
    assert [tokens[mask].tolist() for tokens, mask in zip(candidates, negative, strict=True)] == [[], [2], [1]]
    loss = vocabulary_loss(hidden, embedding, labels[0], 1.0, 0.5, candidates, negative)
    likelihood = -(math.log(5 / 8) + math.log(2 / 8) + math.log(5 / 8))
    unlikelihood = -(math.log(1 - 5 / 8) + math.log(1 - 2 / 8))
    assert loss.item() == pytest.approx((likelihood + 0.5 * unlikelihood) / 3, rel=1e-6)


def test_each_earlier_scored_token_is_a_candidate_once():
    candidates, negative = earlier_tokens(torch.tensor([[IGNORE, 4, 4, 5, 6], [7, 8, IGNORE, IGNORE, IGNORE]]))
    kept = [sorted(tokens[mask].tolist()) for tokens, mask in zip(candidates, negative, strict=True)]
    assert kept == [[], [], [4], [4, 5], [], [7]]


@pytest.mark.parametrize("likelihood", [1.0, 0.0])
def test_the_fused_gradient_equals_autograds(likelihood):
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(300, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    embedding = torch.randn(11, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (300,), generator=draw)
    candidates = torch.randint(0, 11, (300, 4), generator=draw)
    negative = torch.rand(300, 4, generator=draw) < 0.5
    fused = vocabulary_loss(hidden, embedding, labels, likelihood, 0.7, candidates, negative, torch.float64)
    found = torch.autograd.grad(3 * fused, (hidden, embedding))
    log_probs = torch.log_softmax(hidden @ embedding.T, -1)
    negative_terms = torch.log1p(-log_probs.gather(1, candidates).exp())
    plain = -likelihood * log_probs.gather(1, labels[:, None]).sum() - 0.7 * (negative_terms * negative).sum()
    expected = torch.autograd.grad(3 * plain / 300, (hidden, embedding))
    assert fused.item() == pytest.approx(plain.item() / 300, rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_certain_repetition_is_finite_and_a_likely_one_has_a_gradient():
    embedding = torch.tensor([[0.0], [1.0]])
    one = torch.tensor([[1]])
    for logit, gradient in ((100.0, 0.0), (7.0, 1.0)):
        hidden = torch.full((1, 1), logit, requires_grad=True)
        loss = vocabulary_loss(hidden, embedding, torch.tensor([1]), 0.0, 1.0, one, one.bool())
        loss.backward()
        assert 5 < loss.item() < 20
        assert hidden.grad.item() == pytest.approx(gradient, abs=0.01)


def test_repeated_ngrams_are_marked_from_their_second_occurrence():
    tokens = torch.tensor([[1, 2, 3, 1, 2, 3, 1], [5, 6, 5, 6, IGNORE, IGNORE, IGNORE], [1, 2, 3, 4, 5, 6, 7]])
    marked = repeated_ngrams(tokens, n=3)
    assert marked[0].tolist() == [False, False, False, True, True, True, True]
    assert not marked[1].any() and not marked[2].any()
    assert repeated_ngrams(tokens, n=2)[1].tolist() == [False, False, True, True, False, False, False]


def test_minimising_the_repetition_loss_reduces_repetition(batch):
    torch.manual_seed(3)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, decoder_start_token_id=0)
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = repetition_loss(model, batch, longest=16)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert model.training
    assert losses[0] > 0
    assert min(losses[-2:]) < 0.5 * losses[0]
