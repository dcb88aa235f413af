"""Counting in bounded memory, on disk and in shards returns the counts of the corpus."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foredraft.errors import UserError
from foredraft.ngram_native import files
from foredraft.ngram_native.count import count
from foredraft.ngram_native.counts import merge
from foredraft.ngram_native.counts_file import KIND, StreamCounter, merge_files, open_counts, save_counts

V = 300


def corpus(seed: int, sequences: int = 200) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [np.minimum(draw.geometric(0.05, draw.integers(0, 20)), V - 1) for _ in range(sequences)]


def count_all(sequences, order: int = 5):
    return count(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]), order, V)


def assert_equal(left, right) -> None:
    np.testing.assert_array_equal(left.words, right.words)
    np.testing.assert_array_equal(left.counts, right.counts)


@pytest.mark.parametrize("memory", [1 << 30, 40_000, 500])
@pytest.mark.parametrize("named", [False, True])
def test_the_memory_limit_does_not_change_the_counts(memory, named, tmp_path):
    sequences, counter = corpus(0), StreamCounter(5, V, memory, "abc", tmp_path)
    for begin in range(0, len(sequences), 7):
        counter.add(sequences[begin : begin + 7])
    counts = counter.finish(tmp_path / "out.counts" if named else None)
    assert_equal(counts, count_all(sequences))
    assert (len(counter._runs) > 1) == (memory < 1 << 30)
    assert counts.tokenizer == "abc" and (counter.texts, counter.tokens) == (200, sum(map(len, sequences)))
    assert [file.name for file in tmp_path.iterdir()] == (["out.counts"] if named else [])


def test_merged_files_equal_the_counts_of_the_corpus(tmp_path):
    sequences = corpus(1)
    for shard in range(5):
        save_counts(count_all(sequences[shard * 40 : shard * 40 + 40]), tmp_path / f"{shard}.counts")
    paths = [tmp_path / f"{shard}.counts" for shard in (3, 0, 4, 1, 2)]
    assert_equal(merge_files(paths, tmp_path / "all.counts"), count_all(sequences))
    assert_equal(merge_files(paths[:1], tmp_path / "one.counts"), open_counts(paths[0]))
    assert files.verify(tmp_path / "all.counts", KIND) > 0


def test_counting_continues_from_a_file(tmp_path):
    sequences = corpus(2)
    save_counts(count_all(sequences[:90]), tmp_path / "a.counts")
    counter = StreamCounter(5, V)
    counter.add(sequences[90:])
    counter.update(open_counts(tmp_path / "a.counts"))
    assert_equal(counter.finish(), count_all(sequences))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 4), max_size=7), max_size=12), st.integers(0, 12), st.integers(1, 8))
def test_merging_is_exact_in_any_order(sequences, split, order):
    def counted(part):
        return count(np.array([i for tokens in part for i in tokens], np.int64), np.cumsum([0, *map(len, part)]), order, 5)

    left, right = counted(sequences[:split]), counted(sequences[split:])
    assert_equal(merge(left, right), counted(sequences))
    assert_equal(merge(right, left), counted(sequences))


def test_files_that_do_not_match_are_named(tmp_path):
    save_counts(count_all(corpus(0), 5), tmp_path / "a.counts")
    save_counts(count_all(corpus(0), 4), tmp_path / "b.counts")
    with pytest.raises(UserError, match="b.counts: its order"):
        merge_files([tmp_path / "a.counts", tmp_path / "b.counts"], tmp_path / "c.counts")
    with pytest.raises(UserError, match="no counts to merge"):
        merge_files([], tmp_path / "c.counts")
    (tmp_path / "b.counts").write_bytes((tmp_path / "a.counts").read_bytes()[:-30])
    with pytest.raises(UserError, match="truncated"):
        open_counts(tmp_path / "b.counts")
    assert not (tmp_path / "c.counts").exists()
