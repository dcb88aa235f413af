"""Counting n-grams of orders 1..N: all orders at once, by sorting windows of N tokens.

Contract. A corpus is `tokens` [n], integers in 0..V-1, and `starts` [m + 1] int64: sequence s is
tokens[starts[s] : starts[s + 1]]. No n-gram crosses the end of a sequence. The result is counts.Counts.

Every position gives one window. Windows are scattered to buckets by their first token, each bucket is sorted in a core's
cache, and equal windows are added up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.thread_count import available_threads
from foredraft.ngram_native.counts import Counts, packing, same_window

# Windows of a bucket: as many as a core's cache contains.
BUCKET = 1 << 16


def count_reference(sequences: Iterable[list[int]], order: int) -> Counter[tuple[int, ...]]:
    """The contract with a dictionary: the occurrences of each n-gram of 1..order tokens."""
    counts = Counter()
    for sequence in sequences:
        for size in range(1, order + 1):
            counts.update(tuple(sequence[i : i + size]) for i in range(len(sequence) - size + 1))
    return counts


def count(tokens: np.ndarray, starts: np.ndarray, order: int, vocab_size: int, threads: int | None = None) -> Counts:
    """Count the n-grams of a corpus.

    Parameters
    ----------
    tokens
        [n] integers in 0..V-1, all sequences one after the other.
    starts
        [m + 1] int64: sequence s is tokens[starts[s] : starts[s + 1]].
    order
        N.
    vocab_size
        V.
    threads
        Threads to use; those of the engine by default. The result does not depend on it.

    Returns
    -------
    Counts

    Raises
    ------
    ValueError
        A token is outside 0..V-1.
    """
    result = Counts.empty(order, vocab_size)
    tokens, starts = np.ascontiguousarray(tokens), np.asarray(starts, np.int64)
    if not len(tokens):
        return result
    if not (0 <= tokens.min() and tokens.max() < vocab_size):
        raise ValueError(f"tokens must be in 0..{vocab_size - 1}, got {tokens.min()}..{tokens.max()}")
    threads = threads or available_threads()
    bits, per = packing(vocab_size)
    words = len(result.words)
    blocks = np.linspace(0, len(tokens), threads + 1).astype(np.int64)
    seen = np.zeros((threads, vocab_size), np.int64)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_count_tokens, repeat(tokens), blocks[:-1], blocks[1:], seen))
        # All windows with one first token go to one bucket, and buckets are in the order of their first tokens.
        before = np.cumsum(seen.sum(0)) - seen.sum(0)
        bucket_of = np.unique(before // BUCKET, return_inverse=True)[1].astype(np.int64)
        buckets = int(bucket_of[-1]) + 1
        inside = np.zeros((threads, buckets), np.int64)
        for thread in range(threads):
            inside[thread] = np.bincount(bucket_of, seen[thread], minlength=buckets).astype(np.int64)
        flat = inside.T.ravel()
        begins = (np.cumsum(flat) - flat).reshape(buckets, threads).T.copy()  # where each thread's windows of a bucket begin
        keys = np.empty((words, len(tokens)), np.uint64)

        def scatter(begin: int, end: int, slots: np.ndarray) -> None:
            _scatter(tokens, starts, begin, end, bits, per, order, bucket_of, slots, keys)

        list(pool.map(scatter, blocks[:-1], blocks[1:], begins))
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

        sizes = list(pool.map(sort, range(buckets)))
    kept = np.concatenate([[0], np.cumsum(sizes)])
    result.words, result.counts = np.empty((words, kept[-1]), np.uint64), np.empty(kept[-1], np.int64)
    for bucket, size in enumerate(sizes):
        begin, part = bounds[bucket], slice(kept[bucket], kept[bucket + 1])
        result.words[:, part], result.counts[part] = keys[:, begin : begin + size], sums[begin : begin + size]
    return result


@njit()
def _count_tokens(tokens, begin, end, seen):
    for position in range(begin, end):
        seen[tokens[position]] += 1


@njit()
def _scatter(tokens, starts, begin, end, bits, per, order, bucket_of, slots, keys):
    """Roll a window over a block from its end and append each window to its bucket, at `slots` of the bucket."""
    W = keys.shape[0]
    # bits of the last word that no token uses
    unused = np.uint64(bits * (per * W - order))
    single = np.uint64((1 << bits) - 1)
    first = np.uint64(bits * (per - 1))
    step = np.uint64(bits)
    window = np.zeros(W, np.uint64)
    sequence = np.searchsorted(starts, end, side="left") - 1
    stop = end
    while stop > begin:
        while starts[sequence] >= stop:
            sequence -= 1
        low = max(starts[sequence], begin)
        # start past the block's end, so that the block's last window is complete
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
                slot = slots[bucket]
                slots[bucket] = slot + 1
                for w in range(W):
                    keys[w, slot] = window[w]
        stop = low


@njit()
def _sort_ties(words):
    """Sort windows that are sorted by their first word by the following words."""
    W, n = words.shape
    for level in range(1, W):
        begin = 0
        while begin < n:
            end = begin + 1
            while end < n and same_window(words[:level], begin, end):
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


@njit()
def _add_up(words, sums):
    """Keep one of each run of equal windows, in place, with the run's length. Returns the number of distinct windows."""
    kept = -1
    for i in range(words.shape[1]):
        if kept >= 0 and same_window(words, kept, i):
            sums[kept] += 1
        else:
            kept += 1
            for w in range(words.shape[0]):
                words[w, kept] = words[w, i]
            sums[kept] = 1
    return kept + 1
