"""Counting in bounded memory, on disk, and in shards: always the counts of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foredraft.errors import UserError
from foredraft.ngram_native import files
from foredraft.ngram_native.count import count, merge
from foredraft.ngram_native.counts_file import KIND, Counter, merge_files, open_counts, save_counts

V = 300


def corpus(seed: int, sequences: int = 200) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [np.minimum(draw.geometric(0.05, draw.integers(0, 20)), V - 1) for _ in range(sequences)]


def whole(sequences, order: int = 5):
    return count(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]), order, V)


def same(left, right) -> None:
    np.testing.assert_array_equal(left.words, right.words)
    np.testing.assert_array_equal(left.counts, right.counts)


@pytest.mark.parametrize("memory", [1 << 30, 40_000, 500])
@pytest.mark.parametrize("named", [False, True])
def test_any_memory_gives_the_same(memory, named, tmp_path):
    sequences, counter = corpus(0), Counter(5, V, memory, "abc", tmp_path)
    for begin in range(0, len(sequences), 7):
        counter.add(sequences[begin : begin + 7])
    counts = counter.finish(tmp_path / "out.counts" if named else None)
    same(counts, whole(sequences))
    assert (len(counter._runs) > 1) == (memory < 1 << 30)
    assert counts.tokenizer == "abc" and (counter.texts, counter.ids) == (200, sum(map(len, sequences)))
    assert [file.name for file in tmp_path.iterdir()] == (["out.counts"] if named else [])


def test_files_merge_to_the_whole(tmp_path):
    sequences = corpus(1)
    for shard in range(5):
        save_counts(whole(sequences[shard * 40 : shard * 40 + 40]), tmp_path / f"{shard}.counts")
    paths = [tmp_path / f"{shard}.counts" for shard in (3, 0, 4, 1, 2)]
    same(merge_files(paths, tmp_path / "all.counts"), whole(sequences))
    same(merge_files(paths[:1], tmp_path / "one.counts"), open_counts(paths[0]))
    assert files.verify(tmp_path / "all.counts", KIND) > 0


def test_counting_goes_on(tmp_path):
    sequences = corpus(2)
    save_counts(whole(sequences[:90]), tmp_path / "a.counts")
    counter = Counter(5, V)
    counter.add(sequences[90:])
    counter.update(open_counts(tmp_path / "a.counts"))
    same(counter.finish(), whole(sequences))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 4), max_size=7), max_size=12), st.integers(0, 12), st.integers(1, 8))
def test_merging_commutes_and_is_exact(sequences, cut, order):
    def counted(part):
        return count(np.array([i for ids in part for i in ids], np.int64), np.cumsum([0, *map(len, part)]), order, 5)

    left, right = counted(sequences[:cut]), counted(sequences[cut:])
    same(merge(left, right), counted(sequences))
    same(merge(right, left), counted(sequences))


def test_what_does_not_belong_together_is_named(tmp_path):
    save_counts(whole(corpus(0), 5), tmp_path / "a.counts")
    save_counts(whole(corpus(0), 4), tmp_path / "b.counts")
    with pytest.raises(UserError, match="b.counts: its order"):
        merge_files([tmp_path / "a.counts", tmp_path / "b.counts"], tmp_path / "c.counts")
    with pytest.raises(UserError, match="no counts to merge"):
        merge_files([], tmp_path / "c.counts")
    (tmp_path / "b.counts").write_bytes((tmp_path / "a.counts").read_bytes()[:-30])
    with pytest.raises(UserError, match="cut short"):
        open_counts(tmp_path / "b.counts")
    assert not (tmp_path / "c.counts").exists()
