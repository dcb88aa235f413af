"""The n-gram table: a back-off model (Katz 1987) as a trie in flat arrays, and its file.

Contract. Nodes are numbered level by level: the tokens 0..V-1 first (level 1), then every stored n-gram of 2, 3, ..., N
tokens in sorted order. There are M nodes, of which the first C (levels 1..N-1) can be contexts:

    unigrams      [V]      float32, p(w) after the empty context
    ids           [M - V]  the last token of the nodes from V on (node n has ids[n - V])
    probabilities [M - V]  p(last token | the tokens before): float32, or uint16 codes (`quantised`)
    first_child   [C + 1]  the children of context c are the nodes first_child[c] : first_child[c + 1], sorted by token
    backoffs      [C]      float32
    best          [C]      the token with the largest probability after c, a child of c or not
    best_probability [C]   its probability, stored like `probabilities`

If the n-gram (c w) is stored, p(w | c) is its probability; else it is backoff(c) p(w | c without its first token), and the
back-off of a context that is not stored is 1. In `strict` tables (Laplace) the second factor is 1 / V, at every context.
For the smoothings that are normalised, the back-offs are chosen so that p(. | c) sums to 1, with codes as well. Integer
arrays have the smallest type that fits. Every prefix and suffix of a node is a node.

A code q stands for exp(-q CODE_STEP), 65535 for 0. Probabilities are rounded down to a code, by at most 0.04 %, so that the
stored probabilities of a context never sum to more than the exact ones.

Files (`.ngram`) have the format of foredraft.ngram_native.files. Version 1 contained, in place of `probabilities`, the array
`alphas` [M] float32 with p(w | c) = alpha(c w) + backoff(c) p(w | c without its first token); it is converted when opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from foredraft.errors import UserError
from foredraft.kernels.core.backend import njit
from foredraft.ngram_native import files
from foredraft.ngram_native.counts import MAX_ORDER, MAX_VOCABULARY

KIND = files.Kind(b"FDNGRAM\n", 2, "n-gram table", "fit one with `foredraft train --drafter ngram`")
CODES = 1 << 16
CODE_STEP = 26 / (CODES - 2)
STRICT = "laplace"
# The types of arrays of indices, of values, and of probabilities that may be codes.
INDICES, FLOATS, CODED = ("<u2", "<i4", "<i8"), ("<f4",), ("<f4", "<u2")
_ARRAYS = ("unigrams", "ids", "probabilities", "first_child", "backoffs", "best", "best_probability")


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """sha256 (hex) of a tokenizer's vocabulary, `tokenizer.get_vocab()`; equal if and only if the vocabularies are."""
    pairs = sorted((index, token) for token, index in vocabulary.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def smallest_type(largest: int) -> np.dtype:
    """The smallest of uint16, int32, int64 that can represent 0..largest."""
    return np.dtype(np.uint16 if largest < 2**16 else np.int32 if largest < 2**31 else np.int64)


def encode(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities in 0..1 as uint16 codes, rounded down."""
    with np.errstate(divide="ignore"):
        codes = np.minimum(np.ceil(-np.log(probabilities) / CODE_STEP), CODES - 2)
    return np.where(probabilities > 0, codes, CODES - 1).astype(np.uint16)


def codebook() -> np.ndarray:
    """[65536] float32: the probability of each code."""
    return np.append(np.exp(-CODE_STEP * np.arange(CODES - 1)), 0.0).astype(np.float32)


@dataclass(frozen=True)
class Table:
    """A smoothed n-gram model. The module's docstring defines the arrays.

    Attributes
    ----------
    vocab_size
        V.
    sizes
        [N], nodes of each level.
    smoothing
        "kneser-ney", "absolute", "laplace", "stupid-backoff" or "arpa".
    discounts
        Per level the discounts of counts 1, 2 and 3+; for Laplace and stupid back-off one entry, their parameter.
    tokenizer
        Fingerprint of the tokenizer's vocabulary; None if it is not known.
    """

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
        """N."""
        return len(self.sizes)

    @property
    def strict(self) -> bool:
        """Whether every context backs off to 1 / V."""
        return self.smoothing == STRICT

    @property
    def quantised(self) -> bool:
        """Whether probabilities are stored as codes."""
        return self.probabilities.dtype == np.uint16

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    @cached_property
    def packed(self) -> tuple:
        """The argument of the kernels: the arrays, the codebook (empty for float32), V, N, strict, the best unigram."""
        values = codebook() if self.quantised else np.zeros(0, np.float32)
        return (self.ids, self.unigrams, self.probabilities, values, self.first_child, self.backoffs, self.best,
                self.best_probability, self.vocab_size, self.order, self.strict, int(np.argmax(self.unigrams)))

    def values(self, name: str) -> np.ndarray:
        """`probabilities` or `best_probability` as float32."""
        stored = getattr(self, name)
        return codebook()[stored] if stored.dtype == np.uint16 else stored

    def save(self, path: str | Path) -> None:
        """Write a `.ngram` file, atomically."""
        files.write(path, KIND, {
            "order": self.order, "vocab_size": self.vocab_size, "sizes": self.sizes, "smoothing": self.smoothing,
            "discounts": self.discounts, "tokenizer": self.tokenizer, "quantised": self.quantised,
        }, {name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def open(cls, path: str | Path) -> Table:
        """Map a `.ngram` file into memory. Indices are checked; other pages are read on first use.

        UserError as foredraft.ngram_native.files.read, or the arrays are not those of a table.
        """
        version, header, arrays = files.read(path, KIND)
        try:
            check_arrays(header["vocab_size"], header["sizes"], arrays, version)
            if version == 1:
                arrays = _from_version_1(header["vocab_size"], arrays)
            discounts = tuple(tuple(map(float, level)) for level in header["discounts"])
            return cls(header["vocab_size"], tuple(header["sizes"]), str(header["smoothing"]), discounts,
                       header["tokenizer"], **{name: arrays[name] for name in _ARRAYS})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: not the arrays of an n-gram table ({error}); {files.DAMAGED}") from None


def check_arrays(vocab_size: int, sizes: list[int], arrays: dict[str, np.ndarray], version: int = KIND.version) -> None:
    """ValueError, TypeError or KeyError: an array is missing, or an index in it would lead outside another array."""
    if any(type(size) is not int or size < 0 for size in (vocab_size, *sizes)) or not sizes or sizes[0] != vocab_size:
        raise ValueError("the sizes of its levels")
    if not (2 <= vocab_size <= MAX_VOCABULARY and len(sizes) <= MAX_ORDER):
        raise ValueError("vocabulary size or order")
    nodes, contexts = sum(sizes), sum(sizes[:-1]) if len(sizes) > 1 else 0
    lengths = {"ids": nodes - vocab_size, "first_child": contexts + 1, "backoffs": contexts, "best": contexts,
               "best_probability": contexts}
    lengths |= {"alphas": nodes} if version == 1 else {"unigrams": vocab_size, "probabilities": nodes - vocab_size}
    for name, length in lengths.items():
        is_coded = name in ("probabilities", "best_probability")
        kinds = INDICES if name in ("ids", "first_child", "best") else CODED if is_coded else FLOATS
        if arrays[name].shape != (length,) or arrays[name].dtype.str not in kinds:
            raise ValueError(f"the shape or type of {name!r}")
    if arrays["best_probability"].dtype != arrays["alphas" if version == 1 else "probabilities"].dtype:
        raise ValueError("the type of 'best_probability'")
    ids, first, best = (arrays[name] for name in ("ids", "first_child", "best"))
    for name, indices in (("ids", ids), ("best", best)):
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < vocab_size:
            raise ValueError(f"a token in {name!r}")
    ends = np.cumsum(sizes)
    # the children of a level are the nodes of the next one
    bounds = first[[0, *ends[:-1].tolist()]] if contexts else first
    if (first[1:] < first[:-1]).any() or bounds.tolist() != ends.tolist():
        raise ValueError("the positions in 'first_child'")


def _from_version_1(vocab_size: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = arrays["alphas"].astype(np.float64)
    children = np.diff(arrays["first_child"].astype(np.int64))
    parents = np.concatenate([np.zeros(vocab_size, np.int64), np.repeat(np.arange(len(children)), children)])
    _interpolate(arrays["ids"], arrays["first_child"].astype(np.int64), parents, arrays["backoffs"], vocab_size, values)
    return arrays | {"unigrams": values[:vocab_size].astype(np.float32),
                     "probabilities": values[vocab_size:].astype(np.float32)}


@njit()
def _interpolate(ids, first_child, parents, backoffs, vocab_size, values):
    """values[n] += backoff(parent) values[suffix of n], level by level."""
    suffixes = np.zeros(len(values), np.int64)
    for node in range(vocab_size, len(values)):
        parent = parents[node]
        token = np.int64(ids[node - vocab_size])
        if parent < vocab_size:
            suffixes[node] = token
        else:
            low, high = first_child[suffixes[parent]], first_child[suffixes[parent] + 1]
            suffixes[node] = low + np.searchsorted(ids[low - vocab_size : high - vocab_size], ids[node - vocab_size])
        values[node] += backoffs[parent] * values[suffixes[node]]
