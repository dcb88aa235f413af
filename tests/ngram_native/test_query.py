"""Drafts compared with the argmax of the distribution over the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.ngram_native.count import count
from foredraft.ngram_native.query import draft, draft_reference
from foredraft.ngram_native.smooth import fit

END = 1


def table(order: int, vocab_size: int = 12, seed: int = 0, **options):
    draw = np.random.default_rng(seed)
    body = [np.minimum(draw.geometric(0.3, draw.integers(1, 12)) + 1, vocab_size - 2) for _ in range(80)]
    sequences = [np.concatenate([[0], tokens, [END]]) for tokens in body]
    return fit(count(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]), order, vocab_size), **options)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("cost", [0.0, 0.05, 0.3])
def test_equals_brute_force(order, cost):
    """Sequences of different lengths and limits, tokens that were never counted, drafts that end in the end token."""
    fitted, draw, B, K = table(order), np.random.default_rng(order), 40, 6
    tokens = np.minimum(draw.geometric(0.3, (B, 10)) + 1, 11)
    tokens[:, 0] = 0
    lengths, allowed = draw.integers(1, 10, B), draw.integers(0, K + 1, B)
    proposed, counts = np.full((B, K), -7), np.full(B, -7)
    draft(fitted, tokens, lengths, allowed, END, cost, proposed, counts)
    for b in range(B):
        expected = draft_reference(fitted, tokens[b, : lengths[b]].tolist(), allowed[b], END, cost)
        assert proposed[b, : counts[b]].tolist() == expected
        assert (proposed[b, counts[b] :] == 0).all()
    if order > 2 and not cost:
        assert (proposed == END).any() and counts.max() == K


def test_a_draft_does_not_depend_on_its_batch():
    fitted = table(3)
    tokens, lengths = np.array([[0, 2, 3, 0], [0, 4, 0, 0]]), np.array([3, 2])
    both, counts = np.zeros((2, 4), np.int64), np.zeros(2, np.int64)
    draft(fitted, tokens, lengths, np.array([4, 4]), END, 0.0, both, counts)
    alone, count_alone = np.zeros((1, 4), np.int64), np.zeros(1, np.int64)
    draft(fitted, tokens[1:], lengths[1:], np.array([4]), END, 0.0, alone, count_alone)
    assert both[1].tolist() == alone[0].tolist() and counts[1] == count_alone[0]


@pytest.mark.full
def test_a_vocabulary_of_more_than_16_bits():
    tokens = [0, 70_000, 3, 70_000, 3, END]
    fitted = fit(count(np.array(tokens), np.array([0, len(tokens)]), 3, 80_000))
    assert fitted.ids.dtype == np.int32
    assert draft_reference(fitted, [0, 70_000], 2, END, 0.0)[0] == 3
    proposed, counts = np.zeros((1, 2), np.int64), np.zeros(1, np.int64)
    draft(fitted, np.array([[0, 70_000]]), np.array([2]), np.array([2]), END, 0.0, proposed, counts)
    assert proposed[0].tolist() == draft_reference(fitted, [0, 70_000], 2, END, 0.0)
