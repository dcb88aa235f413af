"""From counts to probabilities: interpolated modified Kneser-Ney and absolute discounting, pruned, as a Table.

Contract. For an n-gram c w of k ids with adjusted count a(c w), and c' = c without its first id,

    p(w | c) = (a(c w) - D_k(a(c w))) / sum_v a(c v)  +  backoff(c) p(w | c'),     p(w | no context) ends in 1 / V,

where backoff(c) is the mass that the discounts took (and pruning, afterwards), so that every p(. | c) sums to 1.

kneser-ney (Chen and Goodman 1998, section 3; Kneser and Ney 1995): at the highest order a is the count, below it the
number of distinct ids seen before the n-gram; an n-gram that only ever opens a sequence keeps its count. D_k(1),
D_k(2), D_k(3+) are their equation (26), from how many n-grams of order k have a = 1..4.
absolute (Ney, Essen and Kneser 1994): a is the count at every order, one discount n1 / (n1 + 2 n2) per order.

Pruning drops n-grams of two or more ids: first those with count < min_count, then those with the smallest
count(c w) (p(w | c) - backoff(c) p(w | c')) until the arrays fit a budget in bytes. This is the weighted difference of
Seymore and Rosenfeld (1996) without its logarithms: a draft is worth the probability that it is accepted, not its code
length, and at a few megabytes the table drafts measurably better so. A kept n-gram keeps its prefixes and suffixes.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numba import njit

from foredraft.ngram_native.count import Counts
from foredraft.ngram_native.table import Table, smallest_type

SMOOTHINGS = ("kneser-ney", "absolute")
# Used when a corpus is too small to estimate discounts from (the values that lmplz falls back to).
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


def probability_reference(
    counts: Counter[tuple[int, ...]], order: int, vocab_size: int, smoothing: str, context: tuple[int, ...], word: int,
    discount: float | None = None,
) -> float:
    """The contract without pruning, straight from a dictionary of counts of every order."""
    adjusted = {}
    for gram, count in counts.items():
        preceded = [longer for longer in counts if len(longer) == len(gram) + 1 and longer[1:] == gram]
        if len(gram) == order:
            adjusted[gram] = count
        elif len(gram) == 1:
            adjusted[gram] = len(preceded) if smoothing == "kneser-ney" else sum(counts[longer] for longer in preceded)
        else:
            adjusted[gram] = len(preceded) if smoothing == "kneser-ney" and preceded else count

    def conditional(context: tuple[int, ...]) -> float:
        size = len(context) + 1
        discounts = _discounts(np.array([a for gram, a in adjusted.items() if len(gram) == size]), smoothing, discount)
        after = {gram[-1]: a for gram, a in adjusted.items() if len(gram) == size and gram[:-1] == context and a}
        lower = conditional(context[1:]) if context else 1 / vocab_size
        total = sum(after.values())
        if not total:
            return lower
        taken = sum(discounts[min(a, 3) - 1] for a in after.values())
        own = after[word] - discounts[min(after[word], 3) - 1] if word in after else 0
        return own / total + taken / total * lower

    return conditional(context[len(context) - min(len(context), order - 1) :])


def _discounts(adjusted: np.ndarray, smoothing: str, discount: float | None) -> tuple[float, float, float]:
    """What is taken from adjusted counts 1, 2 and 3 or more of one order."""
    if discount is not None:
        return (discount,) * 3
    n1, n2, n3, n4 = (int((adjusted == value).sum()) for value in (1, 2, 3, 4))
    if not n1 or not n2:
        return FALLBACK_DISCOUNTS if smoothing == "kneser-ney" else (FALLBACK_DISCOUNTS[0],) * 3
    single = n1 / (n1 + 2 * n2)
    if smoothing == "absolute":
        return (single,) * 3
    if not n3 or not n4:
        return FALLBACK_DISCOUNTS
    found = tuple(i - (i + 1) * single * b / a for i, (a, b) in enumerate(((n1, n2), (n2, n3), (n3, n4)), 1))
    return found if all(0 < d <= i for i, d in enumerate(found, 1)) else FALLBACK_DISCOUNTS


def fit(
    counts: Counts, smoothing: str = "kneser-ney", discount: float | None = None, min_count: int = 1,
    max_bytes: int | None = None, tokenizer: str | None = None,
) -> Table:
    """Smooth and prune a trie. `discount` (0..1) replaces the estimated ones; `max_bytes` bounds Table.nbytes."""
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"smoothing must be one of {', '.join(SMOOTHINGS)}, not {smoothing!r}")
    if discount is not None and not 0 < discount < 1:
        raise ValueError(f"discount must lie between 0 and 1, got {discount}")
    suffixes = _suffixes(counts)
    adjusted = _adjusted(counts, suffixes, smoothing)
    discounts = tuple(_discounts(a, smoothing, discount) for a in adjusted)
    alphas = _alphas(counts, adjusted, discounts)
    keep = [np.ones(len(level), bool) for level in alphas]
    if min_count > 1:
        keep[1:] = [level >= min_count for level in counts.counts[1:]]
    if max_bytes is not None:
        _fit_budget(counts, suffixes, alphas, keep, max_bytes)
    return _flatten(*_kept(counts, suffixes, alphas, keep), smoothing, discounts, tokenizer)


def _suffixes(counts: Counts) -> list[np.ndarray]:
    """Per level k >= 2, [n_k] int64: the node at level k - 1 of the last k - 1 ids. Level 1 has the empty suffix, 0."""
    suffixes = [np.zeros(counts.vocab_size, np.int64)]
    for level in range(1, counts.order):
        if level == 1:
            suffixes.append(counts.ids[1].astype(np.int64))
        else:
            found = np.empty(len(counts.ids[level]), np.int64)
            first = counts.first_children(level - 1)
            _find_suffixes(counts.parents[level], counts.ids[level], suffixes[-1], first, counts.ids[level - 1], found)
            suffixes.append(found)
    return suffixes


@njit(cache=True, nogil=True)
def _find_suffixes(parents, ids, parent_suffixes, first, candidates, found):
    for node in range(len(ids)):
        context = parent_suffixes[parents[node]]
        low, high = first[context], first[context + 1]
        found[node] = low + np.searchsorted(candidates[low:high], ids[node])


def _adjusted(counts: Counts, suffixes: list[np.ndarray], smoothing: str) -> list[np.ndarray]:
    adjusted = [level.copy() for level in counts.counts]
    if counts.order > 1:
        # The first id of a sequence is given, not predicted, so unigrams are counted as what follows something.
        weights = None if smoothing == "kneser-ney" else counts.counts[1]
        adjusted[0] = np.bincount(suffixes[1], weights, minlength=counts.vocab_size).astype(np.int64)
    if smoothing == "kneser-ney":
        for level in range(1, counts.order - 1):
            preceding = np.bincount(suffixes[level + 1], minlength=len(adjusted[level]))
            adjusted[level] = np.where(preceding > 0, preceding, counts.counts[level])
    return adjusted


def _alphas(counts: Counts, adjusted: list[np.ndarray], discounts: tuple[tuple[float, ...], ...]) -> list[np.ndarray]:
    """Per level [n_k] float64: (a - D(a)) / total of the context; level 1 with its back-off to 1 / V folded in."""
    alphas = []
    for level, (a, taken) in enumerate(zip(adjusted, discounts, strict=True)):
        parents = counts.parents[level]
        own = np.maximum(a - np.array((0.0, *taken))[np.minimum(a, 3)], 0)
        totals = np.bincount(parents, a)
        alphas.append(own / np.maximum(totals, 1)[parents])
    alphas[0] += (1 - alphas[0].sum()) / counts.vocab_size
    return alphas


def _fit_budget(
    counts: Counts, suffixes: list[np.ndarray], alphas: list[np.ndarray], keep: list[np.ndarray], max_bytes: int
) -> None:
    """Cut `keep` to what fits: the n-grams with the largest weighted difference, with their prefixes and suffixes."""
    inner, leaf, fixed = _node_bytes(counts.vocab_size, sum(map(len, alphas)))
    scores, lower = [np.full(counts.vocab_size, np.inf)], alphas[0]
    for level in range(1, counts.order):
        parents, size = counts.parents[level], len(alphas[level - 1])
        backed = (1 - np.bincount(parents, alphas[level], minlength=size))[parents] * lower[suffixes[level]]
        lower = alphas[level] + backed
        scores.append(np.where(keep[level], counts.counts[level] * (lower - backed), -np.inf))
    for level in range(counts.order - 1, 1, -1):
        np.maximum.at(scores[level - 1], counts.parents[level], scores[level])
        np.maximum.at(scores[level - 1], suffixes[level], scores[level])
    flat = np.concatenate(scores[1:]) if counts.order > 1 else np.zeros(0)
    last = counts.order - 1
    sizes = np.concatenate([np.full(len(s), leaf if k == last else inner) for k, s in enumerate(scores) if k])
    falling = np.argsort(-flat)
    room = max_bytes - fixed - counts.vocab_size * (inner if last else leaf)
    fitting = int(np.searchsorted(np.cumsum(sizes[falling]), room, side="right"))
    if fitting < len(flat):
        # Strictly above the first one left out: equal scores stay together, so no node loses its prefix or suffix.
        for level in range(1, counts.order):
            keep[level] &= scores[level] > flat[falling[fitting]]


def _node_bytes(vocab_size: int, nodes: int) -> tuple[int, int, int]:
    """Bytes of a node that can be a context, of one at the highest order, and of the rest of a table."""
    word, index = smallest_type(vocab_size - 1).itemsize, smallest_type(nodes).itemsize
    return word + 4 + index + 4 + word + 4, word + 4, index


def _kept(counts: Counts, suffixes: list[np.ndarray], alphas: list[np.ndarray], keep: list[np.ndarray]):
    """The kept nodes per level, renumbered: ids, parents, suffixes, float32 alphas."""
    ids, parents, shorter, masses = [], [], [], []
    number = np.zeros(1, np.int64)
    for level, kept in enumerate(keep):
        ids.append(counts.ids[level][kept])
        parents.append(number[counts.parents[level][kept]])
        shorter.append(number[suffixes[level][kept]])
        masses.append(alphas[level][kept].astype(np.float32))
        number = np.cumsum(kept) - 1
    return ids, parents, shorter, masses


def _flatten(
    ids: list[np.ndarray], parents: list[np.ndarray], suffixes: list[np.ndarray], alphas: list[np.ndarray],
    smoothing: str, discounts: tuple[tuple[float, ...], ...], tokenizer: str | None,
) -> Table:
    sizes = tuple(map(len, ids))
    vocab_size, nodes = sizes[0], sum(sizes)
    probabilities = alphas[0].astype(np.float64)
    top = int(probabilities.argmax())
    best, best_probability = np.array([top]), probabilities[[top]]
    columns = {"first_child": [], "backoffs": [], "best": [], "best_probability": []}
    for level in range(1, len(sizes)):
        size = sizes[level - 1]
        # From the stored float32 masses, so that what is looked up sums to 1.
        backoffs = np.maximum(1 - np.bincount(parents[level], alphas[level], minlength=size), 0).astype(np.float32)
        first = np.searchsorted(parents[level], np.arange(size + 1))
        probabilities = alphas[level] + backoffs[parents[level]] * probabilities[suffixes[level]]
        shorter = suffixes[level - 1]
        best, best_probability = best[shorter], backoffs * best_probability[shorter]
        _raise_best(first, ids[level], probabilities, best, best_probability)
        columns["first_child"].append(first[:-1] + sum(sizes[:level]))
        columns["backoffs"].append(backoffs)
        columns["best"].append(best)
        columns["best_probability"].append(best_probability)
    columns["first_child"].append(np.array([nodes]))
    word, index = smallest_type(vocab_size - 1), smallest_type(nodes)
    types = {"first_child": index, "backoffs": np.float32, "best": word, "best_probability": np.float32}
    empty = [np.zeros(0)]
    return Table(
        vocab_size, sizes, smoothing, discounts, tokenizer,
        ids=np.concatenate(ids[1:] or empty).astype(word), alphas=np.concatenate(alphas),
        **{name: np.concatenate(parts or empty).astype(types[name]) for name, parts in columns.items()},
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _raise_best(first, ids, probabilities, best, best_probability):
    """Let every context's children compete with what it backs off to; the smaller id wins a tie."""
    for node in range(len(best)):
        for child in range(first[node], first[node + 1]):
            better = probabilities[child] > best_probability[node]
            if better or (probabilities[child] == best_probability[node] and ids[child] < best[node]):
                best[node], best_probability[node] = ids[child], probabilities[child]
