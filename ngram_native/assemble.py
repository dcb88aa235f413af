"""Building a Table from n-grams with probabilities, taking one apart, and pruning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.ngram_native.table import STRICT, Table, codebook, encode, smallest_type


@dataclass
class Levels:
    """N-grams with probabilities, by level. Entry k - 1 of each list describes level k; level 1 contains every token.

    Attributes
    ----------
    ids
        Per level [n_k], the last token; n-grams are sorted.
    parents, suffixes
        Per level [n_k], the nodes of the first and of the last k - 1 tokens at level k - 1.
    probabilities
        Per level [n_k] float64.
    backoffs
        Per level [n_k] float64; None stands for the back-offs with which every context sums to 1.
    """

    ids: list[np.ndarray]
    parents: list[np.ndarray]
    suffixes: list[np.ndarray]
    probabilities: list[np.ndarray]
    backoffs: list[np.ndarray] | None = None

    def select(self, keep: list[np.ndarray]) -> Levels:
        """The nodes whose entry in keep [n_k] bool is true, renumbered, with normalising back-offs."""
        ids, parents, suffixes, probabilities = [], [], [], []
        number = np.zeros(1, np.int64)
        for level, chosen in enumerate(keep):
            ids.append(self.ids[level][chosen])
            parents.append(number[self.parents[level][chosen]])
            suffixes.append(number[self.suffixes[level][chosen]])
            probabilities.append(self.probabilities[level][chosen])
            number = np.cumsum(chosen) - 1
        return Levels(ids, parents, suffixes, probabilities)


def levels_of(table: Table) -> Levels:
    """The n-grams of a table."""
    sizes = table.sizes
    children = np.diff(table.first_child.astype(np.int64))
    parents = np.repeat(np.arange(len(children)), children)
    first = np.zeros(1, np.int64) if not len(children) else table.first_child.astype(np.int64)
    probabilities = table.values("probabilities").astype(np.float64)
    levels = Levels([np.arange(table.vocab_size)], [np.zeros(table.vocab_size, np.int64)],
                    [np.zeros(table.vocab_size, np.int64)], [table.unigrams.astype(np.float64)],
                    [table.backoffs[: table.vocab_size].astype(np.float64)])
    suffixes = np.zeros(sum(sizes), np.int64)
    above = np.concatenate([np.zeros(table.vocab_size, np.int64), parents])
    _suffix_nodes(table.ids, first, above, table.vocab_size, suffixes)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    for level in range(1, table.order):
        begin, end = offsets[level], offsets[level + 1]
        inside = slice(begin - table.vocab_size, end - table.vocab_size)
        levels.ids.append(table.ids[inside].astype(np.int64))
        levels.parents.append(parents[inside] - offsets[level - 1])
        levels.suffixes.append(suffixes[begin:end] - offsets[level - 1])
        levels.probabilities.append(probabilities[inside])
        if level < table.order - 1:
            levels.backoffs.append(table.backoffs[begin:end].astype(np.float64))
    return levels


@njit()
def _suffix_nodes(ids, first_child, parents, vocab_size, suffixes):
    for node in range(vocab_size, len(suffixes)):
        parent = parents[node]
        if parent < vocab_size:
            suffixes[node] = ids[node - vocab_size]
        else:
            low, high = first_child[suffixes[parent]], first_child[suffixes[parent] + 1]
            suffixes[node] = low + np.searchsorted(ids[low - vocab_size : high - vocab_size], ids[node - vocab_size])


def prune(table: Table, max_bytes: int, quantise: bool | None = None) -> Table:
    """Remove the n-grams whose removal changes the predictions least (see foredraft.ngram_native.smooth).

    A table has no counts, so an n-gram is weighted by its joint probability under the table. Back-offs are recomputed so
    that every context sums to 1; stupid back-off keeps its factor.

    Parameters
    ----------
    table
        The table to prune.
    max_bytes
        Limit of the result's nbytes.
    quantise
        Whether to store probabilities in 16 bits; as in `table` by default.

    Returns
    -------
    Table
    """
    levels = levels_of(table)
    quantise = table.quantised if quantise is None else quantise
    joint = levels.probabilities[0].copy()
    joint[0] = joint[min(1, len(joint) - 1)]  # the start token is as frequent as the end token
    gains = [np.full(len(joint), np.inf)]
    for level in range(1, table.order):
        own, parents = levels.probabilities[level], levels.parents[level]
        joint = joint[parents] * own
        lower = 1 / table.vocab_size if table.strict else levels.probabilities[level - 1][levels.suffixes[level]]
        gains.append(np.maximum(joint * (own - levels.backoffs[level - 1][parents] * lower), 0))
    keep = [np.ones(len(level), bool) for level in levels.ids]
    limit_bytes(levels.parents, levels.suffixes, gains, keep, max_bytes, quantise)
    return assemble(levels.select(keep), table.smoothing, table.discounts, table.tokenizer, quantise)


def limit_bytes(parents: list[np.ndarray], suffixes: list[np.ndarray], gains: list[np.ndarray], keep: list[np.ndarray],
                max_bytes: int, quantise: bool) -> None:
    """Clear entries of `keep` until the table fits; n-grams with the largest gains stay, with prefixes and suffixes."""
    order, vocab_size = len(keep), len(keep[0])
    inner, leaf, fixed = _node_bytes(vocab_size, sum(map(len, keep)), quantise)
    scores = [np.where(chosen, gain, -np.inf) for chosen, gain in zip(keep, gains, strict=True)]
    for level in range(order - 1, 1, -1):
        np.maximum.at(scores[level - 1], parents[level], scores[level])
        np.maximum.at(scores[level - 1], suffixes[level], scores[level])
    flat = np.concatenate(scores[1:]) if order > 1 else np.zeros(0)
    sizes = np.concatenate([np.full(len(s), leaf if k == order - 1 else inner) for k, s in enumerate(scores) if k] or [[]])
    descending = np.argsort(-flat)
    room = max_bytes - fixed - vocab_size * (4 + (inner - leaf if order > 1 else 0))
    fitting = int(np.searchsorted(np.cumsum(sizes[descending]), room, side="right"))
    if fitting < len(flat):
        # equal scores are kept or removed together, so no node loses its prefix or suffix
        for level in range(1, order):
            keep[level] &= scores[level] > flat[descending[fitting]]


def _node_bytes(vocab_size: int, nodes: int, quantise: bool) -> tuple[int, int, int]:
    """Bytes of a node that can be a context, of a node of the highest order, and of the rest of a table."""
    token, index, value = smallest_type(vocab_size - 1).itemsize, smallest_type(nodes).itemsize, 2 if quantise else 4
    return token + value + index + 4 + token + value, token + value, index


def assemble(levels: Levels, smoothing: str, discounts: tuple[tuple[float, ...], ...], tokenizer: str | None,
             quantise: bool = False) -> Table:
    """Build a table: number the nodes, compute the back-offs and find the most probable token of every context."""
    sizes = tuple(map(len, levels.ids))
    vocab_size, nodes, values = sizes[0], sum(sizes), codebook()
    stored = [levels.probabilities[0].astype(np.float32)]
    stored += [encode(p) if quantise else p.astype(np.float32) for p in levels.probabilities[1:]]
    probabilities = [(values[p] if p.dtype == np.uint16 else p).astype(np.float64) for p in stored]
    first_child, backoffs = [], []
    for level in range(1, len(sizes)):
        size, parents = sizes[level - 1], levels.parents[level]
        if levels.backoffs is not None:
            backoffs.append(levels.backoffs[level - 1])
        elif smoothing == "stupid-backoff":
            # the back-off of a context without children is 1, as of a context that is not stored
            backoffs.append(np.where(np.bincount(parents, minlength=size) > 0, discounts[0][0], 1.0))
        else:
            shorter = probabilities[level - 1][levels.suffixes[level]]
            lower = np.full(len(shorter), 1 / vocab_size) if smoothing == STRICT else shorter
            left = 1 - np.bincount(parents, probabilities[level], minlength=size)
            unseen = 1 - np.bincount(parents, lower, minlength=size)
            # a context that was followed by every token has no mass to back off with
            backoffs.append(np.where(unseen > 1e-9, np.maximum(left, 0) / np.maximum(unseen, 1e-9), 0))
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(parents, minlength=size))])
        first_child.append(first[:-1] + sum(sizes[:level]))
    first_child.append(np.array([nodes]))
    token_type, index_type = smallest_type(vocab_size - 1), smallest_type(nodes)
    empty = [np.zeros(0)]
    table = Table(
        vocab_size, sizes, smoothing, discounts, tokenizer, unigrams=stored[0],
        ids=np.concatenate(levels.ids[1:] or empty).astype(token_type),
        probabilities=np.concatenate(stored[1:] or [np.zeros(0, np.uint16 if quantise else np.float32)]),
        first_child=np.concatenate(first_child).astype(index_type),
        backoffs=np.concatenate(backoffs or empty).astype(np.float32),
        best=np.zeros(nodes - sizes[-1] if len(sizes) > 1 else 0, token_type),
        best_probability=np.zeros(nodes - sizes[-1] if len(sizes) > 1 else 0, np.float32),
    )
    if len(sizes) > 1:
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        shorter = np.concatenate([s + (offsets[k - 1] if k > 1 else 0) for k, s in enumerate(levels.suffixes[:-1])])
        _find_best(table.packed, shorter, table.best, table.best_probability)
        if quantise:
            object.__setattr__(table, "best_probability", encode(table.best_probability))
            table.__dict__.pop("packed", None)
    return table


@njit()
def _find_best(packed, shorter, best, best_probability):
    """The most probable token of every context, a child or one that it backs off to; ties go to the smaller token.

    shorter [C] is the node of the context without its first token, which has a smaller number.
    """
    ids, unigrams, probabilities, codes, first_child, backoffs, _, _, vocab_size, _, strict, top = packed
    for node in range(len(best)):
        if strict:
            token, likely = 0, backoffs[node] / vocab_size
        elif node < vocab_size:
            token, likely = top, backoffs[node] * np.float64(unigrams[top])
        else:
            token, likely = np.int64(best[shorter[node]]), backoffs[node] * np.float64(best_probability[shorter[node]])
        own, own_token, is_child = -1.0, -1, False
        for child in range(first_child[node], first_child[node + 1]):
            at = child - vocab_size
            value = np.float64(codes[np.int64(probabilities[at])]) if codes.shape[0] else np.float64(probabilities[at])
            is_child |= ids[at] == token
            if value > own:
                own, own_token = value, np.int64(ids[at])
        if is_child and own < likely:
            # the shorter context's best token is a child here, with another probability: compare all tokens
            token, likely = _argmax(packed, shorter, node)
        elif own > likely or (own == likely and own_token < token) or is_child:
            token, likely = own_token, own
        best[node], best_probability[node] = token, likely


@njit()
def _argmax(packed, shorter, node):
    """The most probable token of a context and its probability, from the distribution over V."""
    ids, unigrams, probabilities, codes, first_child, backoffs, _, _, vocab_size, _, strict, _ = packed
    distribution = unigrams.astype(np.float64)
    path = np.empty(16, np.int64)
    depth = 0
    while True:
        path[depth] = node
        depth += 1
        if node < vocab_size:
            break
        node = shorter[node]
    for i in range(depth - 1, -1, -1):
        context = path[i]
        distribution *= backoffs[context]
        for child in range(first_child[context], first_child[context + 1]):
            at = child - vocab_size
            distribution[ids[at]] = codes[np.int64(probabilities[at])] if codes.shape[0] else probabilities[at]
    token = np.argmax(distribution)
    return token, distribution[token]
