"""The n-gram library on made-up text with Zipf's distribution. Timed by `make bench`; run once, untimed, by the tests."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.ngram_native import batch_query as batch
from foredraft.ngram_native import query, smooth
from foredraft.ngram_native.count import count
from foredraft.ngram_native.device_table import export_device
from foredraft.ngram_native.prompt_lookup.source_index import PromptLookupIndex

V, N, ORDER = 8192, 200_000, 4


@pytest.fixture(scope="module")
def text():
    tokens = np.minimum(np.random.default_rng(0).zipf(1.2, N) + 1, V - 1)
    return tokens, np.arange(0, N + 1, 50)


@pytest.fixture(scope="module")
def table(text):
    return smooth.fit(count(*text, ORDER, V))


def test_count(benchmark, text):
    counts = benchmark(count, *text, ORDER, V)
    assert counts.tokens == N


def test_fit(benchmark, text):
    counts = count(*text, ORDER, V)
    assert benchmark(smooth.fit, counts).order == ORDER


@pytest.mark.parametrize("quantise", [False, True])
def test_probabilities(benchmark, text, quantise):
    table = smooth.fit(count(*text, ORDER, V), quantise=quantise)
    contexts, words = np.lib.stride_tricks.sliding_window_view(text[0], ORDER - 1)[:-1].copy(), text[0][ORDER - 1 :]
    out = benchmark(query.probabilities, table, contexts, words)
    assert out.min() > 0 and out.max() <= 1


def test_batch(benchmark, text, table):
    tokens, starts = text
    scores = benchmark(batch.score, export_device(table), tokens.astype(np.int64), starts)
    assert scores.max() <= 0 and (scores[starts[:-1]] == 0).all()


@pytest.mark.parametrize("B", [1, 8])
def test_draft(benchmark, text, table, B):
    """Eight tokens of each sequence, however improbable they are."""
    texts, lengths, K = text[0][: B * 20].reshape(B, 20).astype(np.int64), np.full(B, 20), 8
    proposed, counts = np.zeros((B, K), np.int64), np.zeros(B, np.int64)
    benchmark(query.draft, table, texts, lengths, np.full(B, K), 1, 0.0, proposed, counts)
    assert counts.max() == K


@pytest.mark.parametrize("combined", [False, True])
def test_propose(benchmark, text, table, combined):
    """One sequence that has copied half of a source of 500 tokens."""
    index, K, source = PromptLookupIndex(1, 4), 8, text[0][:500].astype(np.int64)
    index.admit(0, source)
    tokens = np.concatenate([[0], source[:250]])[None]
    proposed, counts, proposers = np.zeros((1, K), np.int64), np.zeros(1, np.int64), np.zeros((1, K), np.uint8)
    benchmark(index.propose, tokens, np.array([251]), np.array([K]), 1, proposed, counts, proposers, 0.0,
              table if combined else None)
    assert counts[0] == K
