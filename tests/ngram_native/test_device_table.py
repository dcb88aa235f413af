"""The device layout returns what the table returns."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.ngram_native.count import count
from foredraft.ngram_native.device_table import (
    export_device,
    hash_reference,
    next_reference,
    probability_reference,
    probe_reference,
)
from foredraft.ngram_native.query import draft_reference, probability
from foredraft.ngram_native.smooth import fit

END = 1


def table(order: int, vocab_size: int = 40, **options):
    draw = np.random.default_rng(order)
    sequences = [[0, *np.minimum(draw.geometric(0.1, 12) + 1, vocab_size - 1), END] for _ in range(60)]
    return fit(count(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]), order, vocab_size), **options)


@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize("options", [{}, {"smoothing": "laplace"}])
def test_drafts_equal_the_tables(order, options):
    fitted, draw = table(order, **options), np.random.default_rng(1)
    device = export_device(fitted)
    for _ in range(60):
        text = [0, *draw.integers(2, 40, draw.integers(0, 6)).tolist()]
        drafted = []
        while len(drafted) < 6 and END not in drafted:
            drafted.append(next_reference(device, text + drafted)[0])
        assert drafted == draft_reference(fitted, text, 6, END, 0.0)


@pytest.mark.parametrize("options", [{}, {"quantise": True}, {"smoothing": "laplace"}, {"smoothing": "stupid-backoff"}])
def test_probabilities_equal_the_tables(options):
    fitted, draw = table(4, **options), np.random.default_rng(2)
    device = export_device(fitted)
    for _ in range(300):
        context, token = np.minimum(draw.geometric(0.1, draw.integers(0, 6)) + 1, 39), int(draw.integers(0, 40))
        expected = probability(fitted, context, token)
        assert probability_reference(device, context.tolist(), token) == pytest.approx(expected, rel=1e-6)


def test_stored_contexts_are_found_and_others_are_not():
    fitted = table(4)
    device = export_device(fitted)
    assert (device.keys != 0).sum() == len(fitted.best) <= len(device.keys) / 2
    paths = [[token] for token in range(fitted.vocab_size)]
    for node in range(len(fitted.best)):
        assert probe_reference(device, paths[node]) == (fitted.best[node], fitted.best_probability[node])
        children = range(fitted.first_child[node], fitted.first_child[node + 1])
        paths += [[*paths[node], int(fitted.ids[child - fitted.vocab_size])] for child in children]
    known = {tuple(path) for path in paths[: len(fitted.best)]}
    draw = np.random.default_rng(0)
    absent = [gram for gram in map(tuple, draw.integers(0, 40, (300, 3)).tolist()) if gram not in known]
    assert len(absent) > 50 and all(probe_reference(device, list(gram)) is None for gram in absent)


def test_the_hash_equals_values_by_hand():
    """One and two tokens, in 64-bit arithmetic."""
    first = (7 ^ 6) * 0x9E3779B97F4A7C15 % 2**64
    first ^= first >> 32
    assert hash_reference([5], 7) == first
    second = (first ^ 4) * 0x9E3779B97F4A7C15 % 2**64
    assert hash_reference([3, 5], 7) == second ^ (second >> 32)
