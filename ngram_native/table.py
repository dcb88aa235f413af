"""The n-gram table: a trie in flat arrays, and its file.

Contract. Nodes are numbered level by level: the ids 0..V-1 first (level 1), then every kept n-gram of 2, 3, ..., N ids
in sorted order. M nodes in all, of which the first C (levels 1..N-1) can be contexts:

    unigrams      [V]      float32, p(w) after no context
    ids           [M - V]  the last id of the nodes from V on (node n has ids[n - V])
    probabilities [M - V]  p(last id | the ids before): float32, or uint16 codes (`quantised`)
    first_child   [C + 1]  the children of context c are the nodes first_child[c] : first_child[c + 1], sorted by id
    backoffs      [C]      float32
    best          [C]      the id with the largest probability after c, whether a child of c or not
    best_probability [C]   that probability, stored as the others

p(w | c) = the probability of the node (c w) if it is kept, else backoff(c) p(w | c without its first id); a context that
is not kept backs off at no cost. `strict` tables (Laplace) back off to 1 / V at once, from a context that is not kept too.
Where a smoothing is normalised, p(. | c) sums to 1 by the choice of the back-offs, with codes as well. Integer arrays
have the smallest type that fits. Every suffix and prefix of a node is a node.

A code q stands for exp(-q CODE_STEP), 65535 for 0; a probability gets the next smaller one, at most 0.04 % below it, so that
a context never gives away more than it has.

Files (`.ngram`) are those of foredraft.ngram_native.files. Version 1 held, in place of the probabilities, `alphas` [M]
float32, p(w | c) = alpha(c w) + backoff(c) p(w | c without its first id); it opens, and is converted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numba import njit

from foredraft.ngram_native import files

KIND = files.Kind(b"FDNGRAM\n", 2, "n-gram table", "fit one with `foredraft train --drafter ngram`")
CODES = 1 << 16
CODE_STEP = 26 / (CODES - 2)
STRICT = "laplace"
_ARRAYS = ("unigrams", "ids", "probabilities", "first_child", "backoffs", "best", "best_probability")


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """sha256 (hex) of a tokenizer's vocabulary, `tokenizer.get_vocab()`: equal iff every token has the same id."""
    pairs = sorted((index, token) for token, index in vocabulary.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def smallest_type(largest: int) -> np.dtype:
    """The smallest of uint16, int32, int64 that holds 0..largest."""
    return np.dtype(np.uint16 if largest < 2**16 else np.int32 if largest < 2**31 else np.int64)


def encode(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities 0..1 to codes, uint16, rounded down."""
    with np.errstate(divide="ignore"):
        codes = np.minimum(np.ceil(-np.log(probabilities) / CODE_STEP), CODES - 2)
    return np.where(probabilities > 0, codes, CODES - 1).astype(np.uint16)


def codebook() -> np.ndarray:
    """[65536] float32: what each code stands for."""
    return np.append(np.exp(-CODE_STEP * np.arange(CODES - 1)), 0.0).astype(np.float32)


@dataclass(frozen=True)
class Table:
    """See the module docstring. sizes [N]: nodes per level; discounts: per level, what was taken from counts 1, 2, 3+, or
    the one parameter of Laplace and stupid back-off; tokenizer: the vocabulary's fingerprint, or None when not known."""

    vocab_size: int
    sizes: tuple[int, ...]
    smoothing: str
    discounts: tuple[tuple[float, ...], ...]
    tokenizer: str | None
    unigrams: np.ndarray
    ids: np.ndarray
    probabilities: np.ndarray
    first_child: np.ndarray
    backoffs: np.ndarray
    best: np.ndarray
    best_probability: np.ndarray

    @property
    def order(self) -> int:
        return len(self.sizes)

    @property
    def strict(self) -> bool:
        return self.smoothing == STRICT

    @property
    def quantised(self) -> bool:
        return self.probabilities.dtype == np.uint16

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    @cached_property
    def packed(self) -> tuple:
        """What compiled code takes: the arrays, the codebook (empty for float32), V, N, strict, the best single id."""
        values = codebook() if self.quantised else np.zeros(0, np.float32)
        return (self.ids, self.unigrams, self.probabilities, values, self.first_child, self.backoffs, self.best,
                self.best_probability, self.vocab_size, self.order, self.strict, int(np.argmax(self.unigrams)))

    def values(self, name: str) -> np.ndarray:
        """`probabilities` or `best_probability` as float32."""
        stored = getattr(self, name)
        return codebook()[stored] if stored.dtype == np.uint16 else stored

    def save(self, path: str | Path) -> None:
        """Write the file: a temporary one, flushed to the disk, then renamed."""
        files.write(path, KIND, {
            "order": self.order, "vocab_size": self.vocab_size, "sizes": self.sizes, "smoothing": self.smoothing,
            "discounts": self.discounts, "tokenizer": self.tokenizer, "quantised": self.quantised,
        }, {name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def open(cls, path: str | Path) -> Table:
        """Map a file; pages are read on first use. UserError if it is missing, foreign, newer, damaged or cut short."""
        version, header, arrays = files.read(path, KIND)
        if version == 1:
            arrays = _from_version_1(header["vocab_size"], header["sizes"], arrays)
        discounts = tuple(map(tuple, header["discounts"]))
        return cls(header["vocab_size"], tuple(header["sizes"]), header["smoothing"], discounts, header["tokenizer"],
                   **{name: arrays[name] for name in _ARRAYS})


def verify(path: str | Path) -> int:
    """Read every page of a table file; UserError if an array is not what was written. Returns the bytes read."""
    return files.verify(path, KIND)


def _from_version_1(vocab_size: int, sizes: list[int], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    whole = arrays["alphas"].astype(np.float64)
    children = np.diff(arrays["first_child"].astype(np.int64))
    parents = np.concatenate([np.zeros(vocab_size, np.int64), np.repeat(np.arange(len(children)), children)])
    _add_backed(arrays["ids"], arrays["first_child"].astype(np.int64), parents, arrays["backoffs"], vocab_size, whole)
    return arrays | {"unigrams": whole[:vocab_size].astype(np.float32),
                     "probabilities": whole[vocab_size:].astype(np.float32)}


@njit(cache=True, nogil=True)
def _add_backed(ids, first_child, parents, backoffs, vocab_size, whole):
    """whole[n] += backoff(parent) whole[suffix of n], level by level as nodes are numbered."""
    suffixes = np.zeros(len(whole), np.int64)
    for node in range(vocab_size, len(whole)):
        parent = parents[node]
        word = np.int64(ids[node - vocab_size])
        if parent < vocab_size:
            suffixes[node] = word
        else:
            low, high = first_child[suffixes[parent]], first_child[suffixes[parent] + 1]
            suffixes[node] = low + np.searchsorted(ids[low - vocab_size : high - vocab_size], ids[node - vocab_size])
        whole[node] += backoffs[parent] * whole[suffixes[node]]
