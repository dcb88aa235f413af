"""Counting n-grams of orders 1..N: every order at once, from one sorted list of windows.

Contract. A corpus is `tokens` [n] integer ids in 0..V-1 and `starts` [m + 1] int64: sequence s is
tokens[starts[s] : starts[s + 1]]; no n-gram crosses a sequence. Every position gives one window, its N ids from there on,
cut at the end of its sequence. `Counts` holds each different window once, sorted, with how often it was seen: an n-gram of
any order occurred as often as the windows that begin with it. So counts of two corpora merge exactly by merging two sorted
lists, in any order and on any number of machines, and a list on a disk needs no memory.

A window lies in W words of 64 bits, `ids_per_word` ids each, the first id in the highest bits, every id plus 1: 0 is what
lies past the end of a sequence. Comparing words compares windows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import get_num_threads, njit, prange

from foredraft.ngram_native.trie import Trie, dense_level

MAX_ORDER, MAX_VOCABULARY = 8, 2**20
# Windows sorted together: this many stay in a core's cache.
BUCKET = 1 << 16


def count_reference(sequences: Iterable[list[int]], order: int) -> Counter[tuple[int, ...]]:
    """The contract by a dictionary: how often each n-gram of 1..order ids occurs."""
    counts = Counter()
    for sequence in sequences:
        for size in range(1, order + 1):
            counts.update(tuple(sequence[i : i + size]) for i in range(len(sequence) - size + 1))
    return counts


@dataclass
class Counts:
    """words [W, n] uint64, the different windows in order; counts [n] int64, each above 0; tokenizer: the vocabulary's
    fingerprint, or None when it is not known."""

    order: int
    vocab_size: int
    words: np.ndarray
    counts: np.ndarray
    tokenizer: str | None = None

    def __post_init__(self):
        if not (1 <= self.order <= MAX_ORDER and 2 <= self.vocab_size <= MAX_VOCABULARY):
            raise ValueError(f"order {self.order} and {self.vocab_size} ids: use 1..{MAX_ORDER} and 2..{MAX_VOCABULARY}")

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.counts.nbytes

    @property
    def tokens(self) -> int:
        """Ids counted."""
        return int(self.counts.sum())

    @classmethod
    def empty(cls, order: int, vocab_size: int, tokenizer: str | None = None) -> Counts:
        words = np.zeros((word_count(order, vocab_size), 0), np.uint64)
        return cls(order, vocab_size, words, np.zeros(0, np.int64), tokenizer)

    def trie(self) -> Trie:
        """The n-grams of every order, each once."""
        bits, per = _packing(self.vocab_size)
        sizes = np.zeros(self.order, np.int64)
        _measure_levels(self.words, bits, per, self.order, sizes)
        totals = np.zeros(self.vocab_size, np.int64)
        trie = dense_level(totals)
        for size in sizes[1:]:
            trie.counts.append(np.zeros(size, np.int64))
            trie.ids.append(np.zeros(size, np.int32))
            trie.parents.append(np.zeros(size, np.int64))
        for level in range(1, self.order + 1):
            _fill_level(self.words, self.counts, bits, per, level, trie.counts[level - 1], trie.ids[level - 1],
                        trie.parents[level - 1])
        return trie


def _packing(vocab_size: int) -> tuple[int, int]:
    """Bits of an id, ids in a word."""
    bits = int(vocab_size).bit_length()
    return bits, 64 // bits


def word_count(order: int, vocab_size: int) -> int:
    """W, the words of a window."""
    return -(-order // _packing(vocab_size)[1])


def count(tokens: np.ndarray, starts: np.ndarray, order: int, vocab_size: int, threads: int | None = None) -> Counts:
    """Count a corpus: windows scattered to buckets by their first id, each bucket sorted and its equals added up."""
    result = Counts.empty(order, vocab_size)
    tokens, starts = np.ascontiguousarray(tokens), np.asarray(starts, np.int64)
    if not len(tokens):
        return result
    if not (0 <= tokens.min() and tokens.max() < vocab_size):
        raise ValueError(f"ids must lie in 0..{vocab_size - 1}, got {tokens.min()}..{tokens.max()}")
    threads = threads or get_num_threads()
    bits, per = _packing(vocab_size)
    words = len(result.words)
    blocks = np.linspace(0, len(tokens), threads + 1).astype(np.int64)
    seen = np.zeros((threads, vocab_size), np.int64)
    _count_ids(tokens, blocks, seen)
    # Whole ids go to a bucket, so that every bucket holds its windows completely and buckets stand in order.
    before = np.cumsum(seen.sum(0)) - seen.sum(0)
    bucket_of = np.unique(before // BUCKET, return_inverse=True)[1].astype(np.int64)
    buckets = int(bucket_of[-1]) + 1
    inside = np.zeros((threads, buckets), np.int64)
    for thread in range(threads):
        inside[thread] = np.bincount(bucket_of, seen[thread], minlength=buckets).astype(np.int64)
    # places[t, b]: where thread t's first window of bucket b goes
    flat = inside.T.ravel()
    places = (np.cumsum(flat) - flat).reshape(buckets, threads).T.copy()
    keys = np.empty((words, len(tokens)), np.uint64)
    _scatter(tokens, starts, blocks, bits, per, order, bucket_of, places, keys)
    bounds = np.concatenate([[0], np.cumsum(inside.sum(0))])
    sums = np.empty(len(tokens), np.int64)

    def sort(bucket: int) -> int:
        part = keys[:, bounds[bucket] : bounds[bucket + 1]]
        if words == 1:
            part[0].sort()
        else:
            part[:] = part[:, np.argsort(part[0])]
            _sort_ties(part)
        return _add_up(part, sums[bounds[bucket] : bounds[bucket + 1]])

    with ThreadPoolExecutor(threads) as pool:
        sizes = list(pool.map(sort, range(buckets)))
    kept = np.concatenate([[0], np.cumsum(sizes)])
    result.words, result.counts = np.empty((words, kept[-1]), np.uint64), np.empty(kept[-1], np.int64)
    for bucket, size in enumerate(sizes):
        begin, place = bounds[bucket], slice(kept[bucket], kept[bucket + 1])
        result.words[:, place], result.counts[place] = keys[:, begin : begin + size], sums[begin : begin + size]
    return result


def merge(left: Counts, right: Counts) -> Counts:
    """The counts of both corpora together: exactly what `count` gives for the two joined."""
    result = Counts.empty(left.order, left.vocab_size, left.tokenizer)
    size = merged_size(left, right)
    result.words, result.counts = np.empty((len(left.words), size), np.uint64), np.empty(size, np.int64)
    merge_into(left, right, result.words, result.counts)
    return result


def merged_size(left: Counts, right: Counts) -> int:
    """How many different windows both hold together."""
    if (left.order, left.vocab_size) != (right.order, right.vocab_size):
        raise ValueError(f"orders {left.order}, {right.order} and ids {left.vocab_size}, {right.vocab_size} must agree")
    return _merge_loop(left.words, left.counts, right.words, right.counts, np.empty((len(left.words), 0), np.uint64),
                       np.empty(0, np.int64))


def merge_into(left: Counts, right: Counts, words: np.ndarray, counts: np.ndarray) -> None:
    """Merge into arrays of merged_size windows, which may be files."""
    _merge_loop(left.words, left.counts, right.words, right.counts, words, counts)


@njit(cache=True, nogil=True, parallel=True)
def _count_ids(tokens, blocks, seen):
    for block in prange(len(blocks) - 1):
        for position in range(blocks[block], blocks[block + 1]):
            seen[block, tokens[position]] += 1


@njit(cache=True, nogil=True, parallel=True)
def _scatter(tokens, starts, blocks, bits, per, order, bucket_of, places, keys):
    """Roll the window over every block from its end, and put each window where its bucket goes on."""
    W = keys.shape[0]
    # the last word may hold fewer ids than there is room for
    unused = np.uint64(bits * (per * W - order))
    single = np.uint64((1 << bits) - 1)
    first = np.uint64(bits * (per - 1))
    step = np.uint64(bits)
    for block in prange(len(blocks) - 1):
        begin, end = blocks[block], blocks[block + 1]
        window = np.zeros(W, np.uint64)
        sequence = np.searchsorted(starts, end, side="left") - 1
        stop = end
        while stop > begin:
            while starts[sequence] >= stop:
                sequence -= 1
            low = max(starts[sequence], begin)
            # beyond a block's end the window already rolls, so that it is whole at the end
            high = min(starts[sequence + 1], stop + order)
            window[:] = np.uint64(0)
            for position in range(high - 1, low - 1, -1):
                carried = np.uint64(tokens[position]) + np.uint64(1)
                for w in range(W):
                    last = window[w] & single if w < W - 1 else np.uint64(0)
                    window[w] = (window[w] >> step) | (carried << first)
                    carried = last
                window[W - 1] = (window[W - 1] >> unused) << unused
                if position < end:
                    bucket = bucket_of[tokens[position]]
                    place = places[block, bucket]
                    places[block, bucket] = place + 1
                    for w in range(W):
                        keys[w, place] = window[w]
            stop = low


@njit(cache=True, nogil=True)
def _sort_ties(words):
    """Order windows whose first word is sorted by the words that follow."""
    W, n = words.shape
    for level in range(1, W):
        begin = 0
        while begin < n:
            end = begin + 1
            while end < n and _same(words[:level], begin, end):
                end += 1
            if end - begin > 24:
                order = np.argsort(words[level, begin:end]) + begin
                for w in range(level, W):
                    words[w, begin:end] = words[w][order]
            else:
                for i in range(begin + 1, end):
                    j = i
                    while j > begin and words[level, j - 1] > words[level, j]:
                        for w in range(level, W):
                            words[w, j - 1], words[w, j] = words[w, j], words[w, j - 1]
                        j -= 1
            begin = end


@njit(cache=True, nogil=True)
def _same(words, i, j):
    for w in range(words.shape[0]):
        if words[w, i] != words[w, j]:
            return False
    return True


@njit(cache=True, nogil=True)
def _add_up(words, sums):
    """Keep one of each run of equal windows, in place, and the run's length; returns how many are left."""
    kept = -1
    for i in range(words.shape[1]):
        if kept >= 0 and _same(words, kept, i):
            sums[kept] += 1
        else:
            kept += 1
            for w in range(words.shape[0]):
                words[w, kept] = words[w, i]
            sums[kept] = 1
    return kept + 1


@njit(cache=True, nogil=True)
def _compare(left, i, right, j):
    for w in range(left.shape[0]):
        if left[w, i] != right[w, j]:
            return -1 if left[w, i] < right[w, j] else 1
    return 0


@njit(cache=True, nogil=True)
def _merge_loop(left, left_counts, right, right_counts, words, counts):
    """Merge two sorted lists, or only measure the result when there is no room for it."""
    W, i, j, n = left.shape[0], 0, 0, 0
    writes = len(counts) > 0
    while i < left.shape[1] or j < right.shape[1]:
        if i == left.shape[1]:
            order = 1
        elif j == right.shape[1]:
            order = -1
        else:
            order = _compare(left, i, right, j)
        if writes:
            total = np.int64(0)
            if order <= 0:
                total += left_counts[i]
            if order >= 0:
                total += right_counts[j]
            for w in range(W):
                words[w, n] = left[w, i] if order <= 0 else right[w, j]
            counts[n] = total
        i += order <= 0
        j += order >= 0
        n += 1
    return n


@njit(cache=True, nogil=True)
def _id_at(words, i, place, bits, per):
    """The id plus 1 at `place` of window i, 0 past its end."""
    shift = np.uint64(bits * (per - 1 - place % per))
    return np.int64((words[place // per, i] >> shift) & np.uint64((1 << bits) - 1))


@njit(cache=True, nogil=True)
def _shared(words, i, bits, per, order):
    """How many ids window i has in common with the one before it."""
    shared = 0
    while shared < order and _id_at(words, i, shared, bits, per) == _id_at(words, i - 1, shared, bits, per):
        shared += 1
    return shared


@njit(cache=True, nogil=True)
def _measure_levels(words, bits, per, order, sizes):
    for i in range(words.shape[1]):
        shared = _shared(words, i, bits, per, order) if i else 0
        for level in range(shared, order):
            if _id_at(words, i, level, bits, per) == 0:
                break
            sizes[level] += 1


@njit(cache=True, nogil=True)
def _fill_level(words, window_counts, bits, per, level, counts, ids, parents):
    """Counts, last ids and parents of the n-grams of `level` ids; level 1 is dense, its nodes are the ids."""
    node, parent = -1, -1
    for i in range(words.shape[1]):
        shared = _shared(words, i, bits, per, level) if i else 0
        last = _id_at(words, i, level - 1, bits, per)
        if level == 1:
            counts[last - 1] += window_counts[i]
            continue
        if shared < level - 1:
            if level == 2:
                parent = _id_at(words, i, 0, bits, per) - 1
            elif _id_at(words, i, level - 2, bits, per) != 0:
                parent += 1
        if last == 0:
            continue
        if shared < level:
            node += 1
            ids[node] = last - 1
            parents[node] = parent
        counts[node] += window_counts[i]


def from_windows(windows: np.ndarray, counts: np.ndarray, vocab_size: int) -> Counts:
    """Counts from windows [n, N] int64 (ids plus 1, 0 past an end), each different, and how often each was seen [n]."""
    order = windows.shape[1]
    result = Counts.empty(order, vocab_size)
    bits, per = _packing(vocab_size)
    words = np.zeros((len(result.words), len(windows)), np.uint64)
    for place in range(order):
        words[place // per] |= windows[:, place].astype(np.uint64) << np.uint64(bits * (per - 1 - place % per))
    sorting = np.lexsort(words[::-1])
    result.words, result.counts = np.ascontiguousarray(words[:, sorting]), counts[sorting]
    return result
