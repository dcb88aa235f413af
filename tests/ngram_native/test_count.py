"""Counting compared with a dictionary, and merging."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.ngram_native import count as count_module
from foredraft.ngram_native.count import count, count_reference
from foredraft.ngram_native.counts import Counts, merge


def corpus(draw, vocab_size: int, sequences: int) -> list[list[int]]:
    return [draw.integers(0, vocab_size, draw.integers(0, 30)).tolist() for _ in range(sequences)]


def counted(sequences: list[list[int]], order: int, vocab_size: int, threads: int = 1) -> Counts:
    tokens = np.array([token for sequence in sequences for token in sequence], np.int32)
    return count(tokens, np.cumsum([0, *map(len, sequences)]), order, vocab_size, threads)


def as_dictionary(counted: Counts) -> dict[tuple[int, ...], int]:
    """Occurrences of every n-gram, in trie order."""
    trie, grams, result = counted.trie(), [()], {}
    for level in range(trie.order):
        nodes = zip(trie.parents[level], trie.ids[level], strict=True)
        grams = [(*grams[parent], int(token)) for parent, token in nodes]
        assert grams == sorted(grams), "nodes must be sorted by their n-grams"
        result.update((gram, int(n)) for gram, n in zip(grams, trie.counts[level], strict=True) if n)
    return result


@pytest.mark.first(6)
@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("vocab_size", [3, 9, 40_000, 2**20])
@pytest.mark.parametrize("threads", [1, 3])
def test_equals_a_dictionary(order, vocab_size, threads, monkeypatch):
    """Windows of one and of three words, buckets of one and of many tokens, blocks that split sequences."""
    monkeypatch.setattr(count_module, "BUCKET", 64)
    sequences = corpus(np.random.default_rng(order), 9, 60)
    sequences = [[vocab_size - 1 - token % vocab_size for token in sequence] for sequence in sequences]
    assert as_dictionary(counted(sequences, order, vocab_size, threads)) == dict(count_reference(sequences, order))


@pytest.mark.full
def test_large_tokens_do_not_overflow():
    sequences = [[2**20 - 1] * 6, [2**20 - 1, 0, 2**20 - 2, 2**20 - 1]]
    counts = count(np.concatenate(sequences), np.array([0, 6, 10]), 5, 2**20)
    assert as_dictionary(counts) == dict(count_reference(sequences, 5))


def test_merged_halves_equal_the_counts_of_the_corpus():
    sequences = corpus(np.random.default_rng(1), 5, 60)
    halves = counted(sequences[:25], 4, 5), counted(sequences[25:], 4, 5)
    merged, joint = merge(*halves), counted(sequences, 4, 5)
    np.testing.assert_array_equal(merged.words, joint.words)
    np.testing.assert_array_equal(merged.counts, joint.counts)


def test_merging_with_empty_counts():
    some, empty = counted([[1, 2, 3]], 3, 4), counted([], 3, 4)
    assert as_dictionary(merge(empty, some)) == as_dictionary(merge(some, empty)) == as_dictionary(some)
    assert as_dictionary(merge(empty, empty)) == {}


def test_counts_of_different_orders_do_not_merge():
    with pytest.raises(ValueError, match="must agree"):
        merge(counted([[1]], 2, 4), counted([[1]], 3, 4))


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="0..3"):
        counted([[1, 4]], 2, 4)
