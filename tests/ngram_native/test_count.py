"""Counting against a dictionary, and merging."""

from __future__ import annotations

import numpy as np
import pytest

from foredraft.ngram_native import count as count_module
from foredraft.ngram_native.count import Counts, count, count_reference, merge


def corpus(draw, vocab_size: int, sequences: int) -> list[list[int]]:
    return [draw.integers(0, vocab_size, draw.integers(0, 30)).tolist() for _ in range(sequences)]


def counted(sequences: list[list[int]], order: int, vocab_size: int, threads: int = 1) -> Counts:
    tokens = np.array([token for sequence in sequences for token in sequence], np.int32)
    return count(tokens, np.cumsum([0, *map(len, sequences)]), order, vocab_size, threads)


def as_dictionary(whole: Counts) -> dict[tuple[int, ...], int]:
    """Every n-gram by its ids, in trie order."""
    counts, grams, result = whole.trie(), [()], {}
    for level in range(counts.order):
        nodes = zip(counts.parents[level], counts.ids[level], strict=True)
        grams = [(*grams[parent], int(word)) for parent, word in nodes]
        assert grams == sorted(grams), "nodes must stand in the order of their n-grams"
        result.update((gram, int(n)) for gram, n in zip(grams, counts.counts[level], strict=True) if n)
    return result


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("vocab_size", [3, 9, 40_000, 2**20])
@pytest.mark.parametrize("threads", [1, 3])
def test_equals_a_dictionary(order, vocab_size, threads, monkeypatch):
    """Windows of one word and of three, buckets of many ids and of one, blocks that cut sequences."""
    monkeypatch.setattr(count_module, "BUCKET", 64)
    sequences = corpus(np.random.default_rng(order), 9, 60)
    sequences = [[vocab_size - 1 - token % vocab_size for token in sequence] for sequence in sequences]
    assert as_dictionary(counted(sequences, order, vocab_size, threads)) == dict(count_reference(sequences, order))


def test_large_ids_do_not_overflow():
    sequences = [[2**20 - 1] * 6, [2**20 - 1, 0, 2**20 - 2, 2**20 - 1]]
    counts = count(np.concatenate(sequences), np.array([0, 6, 10]), 5, 2**20)
    assert as_dictionary(counts) == dict(count_reference(sequences, 5))


def test_merged_halves_are_the_whole():
    sequences = corpus(np.random.default_rng(1), 5, 60)
    halves = counted(sequences[:25], 4, 5), counted(sequences[25:], 4, 5)
    merged, whole = merge(*halves), counted(sequences, 4, 5)
    np.testing.assert_array_equal(merged.words, whole.words)
    np.testing.assert_array_equal(merged.counts, whole.counts)


def test_merging_with_nothing():
    some, nothing = counted([[1, 2, 3]], 3, 4), counted([], 3, 4)
    assert as_dictionary(merge(nothing, some)) == as_dictionary(merge(some, nothing)) == as_dictionary(some)
    assert as_dictionary(merge(nothing, nothing)) == {}


def test_unequal_tries_do_not_merge():
    with pytest.raises(ValueError, match="must agree"):
        merge(counted([[1]], 2, 4), counted([[1]], 3, 4))


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="0..3"):
        counted([[1, 4]], 2, 4)
