"""Batched look-ups compared with the references."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.ngram_native import query
from foredraft.ngram_native.batch_query import probabilities, score
from foredraft.ngram_native.count import count
from foredraft.ngram_native.device_table import OVERFLOW, export_device, probability_reference
from foredraft.ngram_native.smooth import fit

OPTIONS = [{}, {"quantise": True}, {"smoothing": "laplace"}, {"smoothing": "stupid-backoff"}]


def table(order: int, **options):
    draw = np.random.default_rng(order)
    sequences = [[0, *np.minimum(draw.geometric(0.1, 12) + 1, 39), 1] for _ in range(60)]
    return fit(count(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]), order, 40), **options)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("length", [1, 3])
def test_look_ups_equal_the_reference(options, length):
    device, draw = export_device(table(4, **options)), np.random.default_rng(3)
    for size in (1, 7, 500):
        contexts = np.minimum(draw.geometric(0.1, (size, length)) + 1, 39)
        tokens = draw.integers(0, 40, size)
        expected = [probability_reference(device, c.tolist(), int(t)) for c, t in zip(contexts, tokens, strict=True)]
        np.testing.assert_allclose(probabilities(device, contexts, tokens), expected, rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 4, 6])
@pytest.mark.parametrize("options", OPTIONS)
def test_scores_equal_the_tables(order, options):
    """With empty sequences, sequences of one token, and n-grams that were never counted."""
    fitted, draw = table(order, **options), np.random.default_rng(5)
    sequences = [[0, *np.minimum(draw.geometric(0.1, size) + 1, 39)] for size in (12, 0, 1, 40, 3, 25)]
    sequences.insert(3, [])
    tokens, starts = np.concatenate(sequences).astype(np.int64), np.cumsum([0, *map(len, sequences)])
    expected = query.score(fitted, tokens, starts)
    np.testing.assert_allclose(score(export_device(fitted), tokens, starts), expected, rtol=1e-6, atol=1e-6)


def test_no_tokens_have_no_scores():
    assert len(score(export_device(table(2)), np.zeros(0, np.int64), np.zeros(1, np.int64))) == 0


def test_n_grams_in_an_overflow_bucket_are_found():
    fitted = table(3)
    device = export_device(fitted)
    assert device.gram_probes > 1 and (device.grams[:, -1] & OVERFLOW).any()
    tokens = np.array([[a, b] for a in range(40) for b in range(40)])
    expected = [query.probability(fitted, c[:1], int(c[1])) for c in tokens]
    np.testing.assert_allclose(probabilities(device, tokens[:, :1], tokens[:, 1]), expected, rtol=1e-6)
