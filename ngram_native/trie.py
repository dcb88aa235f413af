"""A trie of counted n-grams of orders 1..N in flat arrays, the input of smoothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foredraft.kernels.core.backend import njit


@dataclass
class Trie:
    """N-grams by level. Entry k - 1 of each list describes level k, the n-grams of k tokens, sorted.

    Level 1 is dense: node v is token v, n_1 = V, and only there counts may be 0. The children of a node are adjacent.

    Attributes
    ----------
    vocab_size
        V.
    counts
        Per level [n_k] int64, occurrences.
    ids
        Per level [n_k] int32, the last token.
    parents
        Per level [n_k] int64, the node of the first k - 1 tokens at level k - 1.
    """

    vocab_size: int
    counts: list[np.ndarray]
    ids: list[np.ndarray]
    parents: list[np.ndarray]

    @property
    def order(self) -> int:
        """N."""
        return len(self.counts)

    def first_children(self, level: int) -> np.ndarray:
        """[n_level + 1] int64: the children of node i of `level` are the nodes first[i] : first[i + 1] of the next level."""
        sizes = np.bincount(self.parents[level], minlength=len(self.counts[level - 1]))
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])

    def suffixes(self) -> list[np.ndarray]:
        """Per level [n_k] int64: the node of the last k - 1 tokens at level k - 1; 0, the empty suffix, at level 1."""
        suffixes = [np.zeros(self.vocab_size, np.int64)]
        for level in range(1, self.order):
            if level == 1:
                suffixes.append(self.ids[1].astype(np.int64))
            else:
                found = np.empty(len(self.ids[level]), np.int64)
                first = self.first_children(level - 1)
                _find_suffixes(self.parents[level], self.ids[level], suffixes[-1], first, self.ids[level - 1], found)
                suffixes.append(found)
        return suffixes


def dense_level(counts: np.ndarray) -> Trie:
    """A trie of unigrams with counts [V]."""
    size = len(counts)
    return Trie(size, [counts], [np.arange(size, dtype=np.int32)], [np.zeros(size, np.int64)])


@njit()
def _find_suffixes(parents, ids, parent_suffixes, first, candidates, found):
    for node in range(len(ids)):
        context = parent_suffixes[parents[node]]
        low, high = first[context], first[context + 1]
        found[node] = low + np.searchsorted(candidates[low:high], ids[node])
