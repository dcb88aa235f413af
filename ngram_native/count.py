"""Counting n-grams of orders 1..N into a sorted trie.

Contract. A corpus is `tokens` [n] integer ids in 0..V-1 and `starts` [m + 1] int64: sequence s is
tokens[starts[s] : starts[s + 1]]; no n-gram crosses a sequence. The result holds every n-gram once, level k (1..N)
sorted by (parent, id), which is the order of the n-grams themselves: so two corpora give two tries that merge exactly,
and the children of a node lie side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numba import njit


def count_reference(sequences: Iterable[list[int]], order: int) -> Counter[tuple[int, ...]]:
    """The contract by a dictionary: how often each n-gram of 1..order ids occurs."""
    counts = Counter()
    for sequence in sequences:
        for size in range(1, order + 1):
            counts.update(tuple(sequence[i : i + size]) for i in range(len(sequence) - size + 1))
    return counts


@dataclass
class Counts:
    """A trie of counts. Entry k - 1 of each list describes the n-grams of k ids.

    counts [n_k] int64, ids [n_k] int32 the last id, parents [n_k] int64 the node of the first k - 1 ids at level k - 1.
    Level 1 is dense: node v is the id v, n_1 = vocab_size, and counts may be 0 there alone.
    """

    vocab_size: int
    counts: list[np.ndarray]
    ids: list[np.ndarray]
    parents: list[np.ndarray]

    @property
    def order(self) -> int:
        return len(self.counts)

    def first_children(self, level: int) -> np.ndarray:
        """[n_level + 1] int64: node i of `level` has the children first[i] : first[i + 1] of the next level."""
        return np.searchsorted(self.parents[level], np.arange(len(self.counts[level - 1]) + 1))


def count(tokens: np.ndarray, starts: np.ndarray, order: int, vocab_size: int) -> Counts:
    """Count a corpus by sorting one 64-bit key (node of the prefix, id) per position and level: O(N n log n)."""
    if len(tokens) and not (0 <= tokens.min() and tokens.max() < vocab_size):
        raise ValueError(f"ids must lie in 0..{vocab_size - 1}, got {tokens.min()}..{tokens.max()}")
    tokens = tokens.astype(np.int64)
    ends = np.repeat(starts[1:], np.diff(starts))
    result = _dense_level(np.bincount(tokens, minlength=vocab_size))
    positions, nodes = np.arange(len(tokens)), tokens
    for level in range(2, order + 1):
        inside = positions + level <= ends[positions]
        positions, nodes = positions[inside], nodes[inside]
        keys = nodes * vocab_size + tokens[positions + level - 1]
        sorting = np.argsort(keys)
        nodes = np.empty(len(keys), np.int64)
        first = _number_runs(keys, sorting, nodes)
        _append_level(result, keys[sorting][first], np.diff(np.append(np.flatnonzero(first), len(keys))))
    return result


def merge(left: Counts, right: Counts) -> Counts:
    """The counts of both corpora together: exactly what `count` gives for the two joined."""
    if (left.order, left.vocab_size) != (right.order, right.vocab_size):
        raise ValueError(f"orders {left.order}, {right.order} and ids {left.vocab_size}, {right.vocab_size} must agree")
    result = _dense_level(left.counts[0] + right.counts[0])
    moved = [np.arange(left.vocab_size)] * 2
    for level in range(1, left.order):
        keys = np.concatenate([
            new[part.parents[level]] * left.vocab_size + part.ids[level]
            for new, part in zip(moved, (left, right), strict=True)
        ])
        values = np.concatenate([left.counts[level], right.counts[level]])
        sorting = np.argsort(keys)
        nodes = np.empty(len(keys), np.int64)
        first = _number_runs(keys, sorting, nodes)
        sums = np.add.reduceat(values[sorting], np.flatnonzero(first)) if len(keys) else values
        _append_level(result, keys[sorting][first], sums)
        moved = np.split(nodes, [len(left.counts[level])])
    return result


def _dense_level(counts: np.ndarray) -> Counts:
    size = len(counts)
    return Counts(size, [counts], [np.arange(size, dtype=np.int32)], [np.zeros(size, np.int64)])


def _append_level(result: Counts, keys: np.ndarray, counts: np.ndarray) -> None:
    parents, ids = np.divmod(keys, result.vocab_size)
    result.counts.append(counts)
    result.ids.append(ids.astype(np.int32))
    result.parents.append(parents)


@njit(cache=True, nogil=True)
def _number_runs(keys, sorting, nodes):
    """nodes[i] = rank of keys[i] among the distinct ones; returns [n] bool: where a new one begins in sorted order."""
    first = np.zeros(len(keys), np.bool_)
    node = -1
    for rank in range(len(keys)):
        if rank == 0 or keys[sorting[rank]] != keys[sorting[rank - 1]]:
            first[rank] = True
            node += 1
        nodes[sorting[rank]] = node
    return first
