"""Counted n-grams of orders 1..N, as a sorted list of windows.

A window is the N tokens from one position on, truncated at the end of its sequence. `Counts` contains every distinct window
once, sorted, with its number of occurrences. An n-gram of any order occurs as often as the windows that begin with it.
So the counts of two corpora are merged exactly by merging two sorted lists, in any order, on any number of machines.

A window is packed into W words of 64 bits, tokens_per_word tokens in each, the first token in the highest bits. A token is
stored plus 1; 0 stands for a position past the end of the sequence. Comparing the words compares the windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foredraft.errors import UserError
from foredraft.kernels.core.backend import njit
from foredraft.ngram_native.trie import Trie, dense_level

MAX_ORDER, MAX_VOCABULARY = 8, 2**20
# Tokens that a file may count: float64 is exact up to here.
MOST_TOKENS = 2**53


@dataclass
class Counts:
    """The distinct windows of a corpus and how often each occurred.

    Attributes
    ----------
    order
        N, 1 to MAX_ORDER.
    vocab_size
        V, 2 to MAX_VOCABULARY.
    words
        [W, n] uint64, the distinct windows, sorted.
    counts
        [n] int64, occurrences of each, above 0.
    tokenizer
        Fingerprint of the tokenizer's vocabulary (table.vocabulary_fingerprint); None if it is not known.
    """

    order: int
    vocab_size: int
    words: np.ndarray
    counts: np.ndarray
    tokenizer: str | None = None

    def __post_init__(self):
        if not (1 <= self.order <= MAX_ORDER and 2 <= self.vocab_size <= MAX_VOCABULARY):
            raise ValueError(f"order is {self.order} and vocab_size {self.vocab_size}; use 1..{MAX_ORDER} and "
                             f"2..{MAX_VOCABULARY}")

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.words.nbytes + self.counts.nbytes

    @property
    def tokens(self) -> int:
        """Number of tokens counted."""
        return int(self.counts.sum())

    @classmethod
    def empty(cls, order: int, vocab_size: int, tokenizer: str | None = None) -> Counts:
        """Counts of no text."""
        words = np.zeros((word_count(order, vocab_size), 0), np.uint64)
        return cls(order, vocab_size, words, np.zeros(0, np.int64), tokenizer)

    def trie(self) -> Trie:
        """The n-grams of every order as a trie, each with its number of occurrences.

        UserError: a window holds another token, or the windows are not sorted, as in a damaged file.
        """
        bits, per = packing(self.vocab_size)
        if not _are_windows(self.words, self.counts, bits, per, self.order, self.vocab_size):
            raise UserError("the counts are damaged: windows of other tokens, or in another order; count the texts again")
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


def packing(vocab_size: int) -> tuple[int, int]:
    """(bits of a token, tokens in a word)."""
    bits = int(vocab_size).bit_length()
    return bits, 64 // bits


def word_count(order: int, vocab_size: int) -> int:
    """W, the number of words of a window."""
    return -(-order // packing(vocab_size)[1])


def from_windows(windows: np.ndarray, counts: np.ndarray, vocab_size: int) -> Counts:
    """Counts of distinct windows [n, N] int64 (tokens plus 1, 0 past an end) with their occurrences [n] int64."""
    order = windows.shape[1]
    result = Counts.empty(order, vocab_size)
    bits, per = packing(vocab_size)
    words = np.zeros((len(result.words), len(windows)), np.uint64)
    for offset in range(order):
        words[offset // per] |= windows[:, offset].astype(np.uint64) << np.uint64(bits * (per - 1 - offset % per))
    sorting = np.lexsort(words[::-1])
    result.words, result.counts = np.ascontiguousarray(words[:, sorting]), counts[sorting]
    return result


def merge(left: Counts, right: Counts) -> Counts:
    """The counts of both corpora together, equal to what `count` returns for the concatenated corpora."""
    result = Counts.empty(left.order, left.vocab_size, left.tokenizer)
    size = merged_size(left, right)
    result.words, result.counts = np.empty((len(left.words), size), np.uint64), np.empty(size, np.int64)
    merge_into(left, right, result.words, result.counts)
    return result


def merged_size(left: Counts, right: Counts) -> int:
    """Number of distinct windows in both together."""
    if (left.order, left.vocab_size) != (right.order, right.vocab_size):
        raise ValueError(f"orders {left.order}, {right.order} and vocabulary sizes {left.vocab_size}, {right.vocab_size} "
                         "must agree")
    return _merge_loop(left.words, left.counts, right.words, right.counts, np.empty((len(left.words), 0), np.uint64),
                       np.empty(0, np.int64))


def merge_into(left: Counts, right: Counts, words: np.ndarray, counts: np.ndarray) -> None:
    """Merge into arrays for merged_size windows, which may be memory-mapped files."""
    _merge_loop(left.words, left.counts, right.words, right.counts, words, counts)


@njit()
def _compare(left, i, right, j):
    for w in range(left.shape[0]):
        if left[w, i] != right[w, j]:
            return -1 if left[w, i] < right[w, j] else 1
    return 0


@njit()
def _merge_loop(left, left_counts, right, right_counts, words, counts):
    """Merge two sorted lists and return the size of the result; with empty `counts` nothing is written."""
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


@njit()
def _token_at(words, i, offset, bits, per):
    """The token plus 1 at `offset` of window i; 0 past its end."""
    shift = np.uint64(bits * (per - 1 - offset % per))
    return np.int64((words[offset // per, i] >> shift) & np.uint64((1 << bits) - 1))


@njit()
def _are_windows(words, counts, bits, per, order, vocab_size):
    """Whether every window is one of tokens below V that begins with a token, occurs, and follows the one before."""
    total = 0
    for i in range(words.shape[1]):
        if counts[i] <= 0 or counts[i] > MOST_TOKENS - total or _token_at(words, i, 0, bits, per) == 0:
            return False
        if i and _compare(words, i - 1, words, i) >= 0:
            return False
        total += counts[i]
        ended = False
        for offset in range(order):
            token = _token_at(words, i, offset, bits, per)
            if token > vocab_size or (ended and token):
                return False
            ended |= token == 0
    return True


@njit()
def _shared(words, i, bits, per, order):
    """Length of the common prefix of windows i - 1 and i."""
    shared = 0
    while shared < order and _token_at(words, i, shared, bits, per) == _token_at(words, i - 1, shared, bits, per):
        shared += 1
    return shared


@njit()
def _measure_levels(words, bits, per, order, sizes):
    for i in range(words.shape[1]):
        shared = _shared(words, i, bits, per, order) if i else 0
        for level in range(shared, order):
            if _token_at(words, i, level, bits, per) == 0:
                break
            sizes[level] += 1


@njit()
def _fill_level(words, window_counts, bits, per, level, counts, ids, parents):
    """Counts, last tokens and parents of the n-grams of `level` tokens. Level 1 is dense: node v is token v."""
    node, parent = -1, -1
    for i in range(words.shape[1]):
        shared = _shared(words, i, bits, per, level) if i else 0
        last = _token_at(words, i, level - 1, bits, per)
        if level == 1:
            counts[last - 1] += window_counts[i]
            continue
        if shared < level - 1:
            if level == 2:
                parent = _token_at(words, i, 0, bits, per) - 1
            elif _token_at(words, i, level - 2, bits, per) != 0:
                parent += 1
        if last == 0:
            continue
        if shared < level:
            node += 1
            ids[node] = last - 1
            parents[node] = parent
        counts[node] += window_counts[i]


@njit()
def same_window(words, i, j):
    for w in range(words.shape[0]):
        if words[w, i] != words[w, j]:
            return False
    return True
