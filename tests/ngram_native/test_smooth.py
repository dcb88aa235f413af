"""Smoothing compared with the contract's reference and values by hand, before and after pruning."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.ngram_native.count import count, count_reference
from foredraft.ngram_native.query import distribution, probability
from foredraft.ngram_native.smooth import SMOOTHINGS, fit, probability_reference

V = 9


def corpus(seed: int = 0, sequences: int = 60) -> list[list[int]]:
    """Sequences 0 ... 1 with a skewed distribution of tokens, so that every count class and back-off occurs."""
    draw = np.random.default_rng(seed)
    body = [np.minimum(draw.geometric(0.4, draw.integers(1, 9)) + 1, V - 1).tolist() for _ in range(sequences)]
    return [[0, *tokens, 1] for tokens in body]


def fitted(sequences, order, **options):
    tokens = np.concatenate(sequences)
    return fit(count(tokens, np.cumsum([0, *map(len, sequences)]), order, V), **options)


def contexts(order: int, seed: int = 1):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, V, size) for size in (0, 1, 2, order, order + 3) for _ in range(15)]


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("discount", [None, 0.6])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_fit_equals_the_reference(order, smoothing, discount):
    sequences = corpus(order, 25)
    table = fitted(sequences, order, smoothing=smoothing, discount=discount)
    counts = count_reference(sequences, order)
    for context in contexts(order)[::5]:
        p = distribution(table, context)
        gram = tuple(context.tolist())
        exact = [probability_reference(counts, order, V, smoothing, gram, token, discount) for token in range(V)]
        np.testing.assert_allclose(p, exact, rtol=0, atol=2e-7)
        assert [probability(table, context, token) for token in range(V)] == pytest.approx(p.tolist(), abs=1e-12)


def test_kneser_ney_equals_values_by_hand():
    """`0 2 3 1`, `0 2 4 1`, `0 4 3 1` with discount 1/2 for every count; V = 9.

    Bigrams, 9 in all: 02 (2), 04, 23, 24, 31 (2), 41, 43. Unigrams count distinct left neighbours:
    1 has {3, 4}, 2 has {0}, 3 has {2, 4}, 4 has {2, 0}: 2, 1, 2, 2, in all 7.
    p(3) = (2 - 1/2)/7 + (4 * 1/2)/7 * 1/9 = 15.5/63.  After 2 come 3 and 4, once each:
    p(3 | 2) = (1 - 1/2)/2 + (2 * 1/2)/2 * p(3) = 1/4 + 1/2 * 15.5/63.
    After 0 come 2 (twice) and 4: p(2 | 0) = (2 - 1/2)/3 + (2 * 1/2)/3 * p(2), p(2) = (1/2)/7 + 2/63 = 6.5/63.
    """
    table = fitted([[0, 2, 3, 1], [0, 2, 4, 1], [0, 4, 3, 1]], 2, discount=0.5)
    assert probability(table, np.array([], np.int64), 3) == pytest.approx(15.5 / 63)
    assert probability(table, np.array([2]), 3) == pytest.approx(1 / 4 + 15.5 / 126)
    assert probability(table, np.array([0]), 2) == pytest.approx(1 / 2 + 6.5 / 189)
    # 5 was never seen, so it backs off to the uniform distribution
    assert probability(table, np.array([5]), 5) == pytest.approx(2 / 63)


def test_discounts_are_estimated_from_counts_of_counts():
    """Equation (26) from n1..n4 = 4, 2, 1, 1: Y = 1/2, D = 1 - 2Y 2/4, 2 - 3Y 1/2, 3 - 4Y 1/1."""
    pairs = [(2, 3), (3, 4), (4, 5), (5, 2)] + [(6, 7), (7, 6)] * 2 + [(6, 8)] * 3 + [(7, 8)] * 4
    table = fitted([list(pair) for pair in pairs], 2)
    assert table.discounts[1] == pytest.approx((0.5, 1.25, 1.0))


@pytest.mark.parametrize("options", [{"min_count": 2}, {"min_count": 50}, {"share": 0.1}, {"share": 0.7},
                                     {"min_count": 2, "quantise": True}, {"min_count": 2, "smoothing": "laplace"}])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_pruned_table_is_normalised_and_closed_under_prefix_and_suffix(order, options):
    sequences = corpus(7, 200)
    full, least = fitted(sequences, order), fitted(sequences, order, min_count=10**6)
    if "share" in options:
        options = {"max_bytes": int(least.nbytes + options["share"] * (full.nbytes - least.nbytes))}
    table = fitted(sequences, order, **options)
    full = fitted(sequences, order, **{name: options[name] for name in ("quantise", "smoothing") if name in options})
    assert sum(table.sizes) < sum(full.sizes)
    assert table.nbytes <= options.get("max_bytes", full.nbytes)
    for context in contexts(order):
        p = distribution(table, context)
        assert p.sum() == pytest.approx(1, abs=1e-6) and (p > 0).all()
    grams = node_tokens(table)
    assert all(gram[1:] in grams and gram[:-1] in grams for gram in grams if len(gram) > 1)


def node_tokens(table) -> set[tuple[int, ...]]:
    grams = [(token,) for token in range(table.vocab_size)]
    for node in range(len(table.best)):
        children = range(table.first_child[node], table.first_child[node + 1])
        grams += [(*grams[node], int(table.ids[child - table.vocab_size])) for child in children]
    return set(grams)


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"max_bytes": 900}, {"smoothing": "absolute"}, {"quantise": True},
                                     {"smoothing": "laplace", "added": 0.1}, {"smoothing": "stupid-backoff", "factor": 0.9}])
def test_best_is_the_argmax(order, options):
    table = fitted(corpus(3, 100), order, **options)
    grams = [(token,) for token in range(V)]
    for node in range(len(table.best)):
        p = distribution(table, np.array(grams[node]))
        assert table.best[node] == p.argmax()
        assert table.values("best_probability")[node] == pytest.approx(p.max(), abs=1e-6, rel=5e-4 * table.quantised)
        children = range(table.first_child[node], table.first_child[node + 1])
        grams += [(*grams[node], int(table.ids[child - V])) for child in children]


@pytest.mark.parametrize("quantise", [False, True])
def test_every_token_has_a_positive_probability(quantise):
    """A context that one token nearly always follows keeps mass for the others, also when quantised."""
    table = fitted([[0, 2, 3, 1]] * 5000 + [[0, 2, 4, 1]], 3, discount=0.01, quantise=quantise)
    p = distribution(table, np.array([0, 2]))
    assert p.min() > 0 and p.sum() == pytest.approx(1, abs=1e-6)


def test_max_bytes_is_nearly_used():
    sequences = corpus(5, 300)
    limit = fitted(sequences, 4).nbytes // 2
    assert 0.8 * limit < fitted(sequences, 4, max_bytes=limit).nbytes <= limit


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match="smoothing"):
        fitted(corpus(), 2, smoothing="good-turing")
    with pytest.raises(ValueError, match="discount"):
        fitted(corpus(), 2, discount=1.5)
