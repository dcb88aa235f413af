"""Smoothing and pruning: from counts of n-grams to probabilities, as a Table.

Contract. For an n-gram c w of k tokens with adjusted count a(c w), and c' = c without its first token:

kneser-ney (interpolated and modified: Kneser and Ney 1995; Chen and Goodman 1999, section 3) and absolute (Ney, Essen and
Kneser 1994):

    p(w | c) = (a(c w) - D_k(a(c w))) / sum_v a(c v)  +  left(c) p(w | c'),     the lowest order interpolates with 1 / V

left(c) is the mass that discounting (and pruning) removed, so that every p(. | c) sums to 1. For kneser-ney, a is the count
at the highest order, and below it the number of distinct tokens that precede the n-gram; an n-gram that occurs only at the
beginning of sequences keeps its count. D_k(1), D_k(2) and D_k(3+) are estimated from the numbers of n-grams of order k with
a = 1..4 (Chen and Goodman 1998, eq. 26). For absolute, a is the count at every order, and there is one discount
n1 / (n1 + 2 n2) per order.

laplace: p(w | c) = (n(c w) + A) / (n(c) + A V) with n(c) = sum_v n(c v), for the last N - 1 tokens or as many as there are,
and 1 / V after a context that was never seen. This is FastLLM's model, which uses shorter contexts for short texts only.

stupid-backoff (Brants et al. 2007): n(c w) / n(c) if c w was seen, else F p(w | c'). These scores do not sum to 1. After a
context that was never seen F is omitted, because it would be the same for every w.

Kneser-Ney is the default: it drafts about 1 % more tokens for its cost than absolute, at orders 3 and up and temperatures 0
and 1 (`foredraft bench ngram --parts acceptance`).

Pruning removes n-grams of two or more tokens: first those with count < min_count, then those with the smallest
count(c w) (p(w | c) - p(w | c) without the n-gram) until the arrays fit in max_bytes. This is the weighted difference of
Seymore and Rosenfeld (1996) without logarithms, because a draft is worth the probability of its acceptance and not its code
length. The prefixes and suffixes of an n-gram that is kept are kept too.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from foredraft.ngram_native.assemble import Levels, assemble, limit_bytes
from foredraft.ngram_native.counts import Counts
from foredraft.ngram_native.table import Table
from foredraft.ngram_native.trie import Trie

INTERPOLATED = ("kneser-ney", "absolute")
SMOOTHINGS = (*INTERPOLATED, "laplace", "stupid-backoff")
# Discounts for a corpus that is too small to estimate them; the values are those of KenLM's lmplz.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


def probability_reference(
    counts: Counter[tuple[int, ...]], order: int, vocab_size: int, smoothing: str, context: tuple[int, ...], token: int,
    discount: float | None = None, added: float = 1.0, factor: float = 0.4,
) -> float:
    """The contract without pruning, from a dictionary with the counts of every order."""
    context = context[len(context) - min(len(context), order - 1) :]
    if smoothing in ("laplace", "stupid-backoff"):
        return _simple_reference(counts, vocab_size, smoothing, context, token, added, factor)
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
        own = after[token] - discounts[min(after[token], 3) - 1] if token in after else 0
        return own / total + taken / total * lower

    return conditional(context)


def _simple_reference(counts, vocab_size, smoothing, context, token, added, factor) -> float:
    seen = counts.get((*context, token), 0)
    total = sum(n for gram, n in counts.items() if gram[:-1] == context and len(gram) == len(context) + 1)
    if smoothing == "laplace":
        return (seen + added) / (total + added * vocab_size)
    if seen or not context:
        return seen / total
    return (factor if total else 1) * _simple_reference(counts, vocab_size, smoothing, context[1:], token, added, factor)


def _discounts(adjusted: np.ndarray, smoothing: str, discount: float | None) -> tuple[float, float, float]:
    """The discounts of adjusted counts 1, 2 and 3+ of one order."""
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
    max_bytes: int | None = None, added: float = 1.0, factor: float = 0.4, quantise: bool = False,
) -> Table:
    """Smooth and prune counts.

    Parameters
    ----------
    counts
        Counts of orders 1..N.
    smoothing
        "kneser-ney", "absolute", "laplace" or "stupid-backoff".
    discount
        Discount in (0, 1) of kneser-ney and absolute; estimated from the counts by default.
    min_count
        Remove n-grams of two or more tokens that occur less often.
    max_bytes
        Limit of the table's nbytes.
    added
        Laplace's A.
    factor
        Stupid back-off's F.
    quantise
        Store probabilities in 16 bits.

    Returns
    -------
    Table

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"smoothing must be one of {', '.join(SMOOTHINGS)}, not {smoothing!r}")
    if discount is not None and not 0 < discount < 1:
        raise ValueError(f"discount is {discount}; it must be between 0 and 1")
    if not added > 0 or not 0 < factor <= 1:
        raise ValueError(f"added is {added} and factor {factor}; added must be above 0, factor above 0 and at most 1")
    trie = counts.trie()
    suffixes = trie.suffixes()
    if smoothing in INTERPOLATED:
        adjusted = _adjusted(trie, suffixes, smoothing)
        parameters = tuple(_discounts(a, smoothing, discount) for a in adjusted)
        discounted = _discounted(trie, adjusted, parameters)
        full = _interpolated(trie.parents, suffixes, discounted)
        without = [discounted[0], *(w - m for w, m in zip(full[1:], discounted[1:], strict=True))]
    else:
        parameters = ((added if smoothing == "laplace" else factor,),)
        full = discounted = _relative(trie, suffixes, smoothing, added)
        uniform = 1 / trie.vocab_size
        without = [full[0], *(np.full(len(w), uniform) if smoothing == "laplace" else factor * full[k][suffixes[k + 1]]
                            for k, w in enumerate(full[1:]))]
    keep = [np.ones(len(level), bool) for level in discounted]
    if min_count > 1:
        keep[1:] = [level >= min_count for level in trie.counts[1:]]
    if max_bytes is not None:
        gains = [np.maximum(n * (p - q), 0) for n, p, q in zip(trie.counts, full, without, strict=True)]
        limit_bytes(trie.parents, suffixes, gains, keep, max_bytes, quantise)
    levels = Levels(trie.ids, trie.parents, suffixes, discounted).select(keep)
    if smoothing in INTERPOLATED:
        levels.probabilities = _interpolated(levels.parents, levels.suffixes, levels.probabilities)
    return assemble(levels, smoothing, parameters, counts.tokenizer, quantise)


def _adjusted(trie: Trie, suffixes: list[np.ndarray], smoothing: str) -> list[np.ndarray]:
    """Per level a(c w) [n_k] int64."""
    adjusted = [level.copy() for level in trie.counts]
    if trie.order > 1:
        # the first token of a sequence is given, so a unigram is counted where it follows another token
        weights = None if smoothing == "kneser-ney" else trie.counts[1]
        adjusted[0] = np.bincount(suffixes[1], weights, minlength=trie.vocab_size).astype(np.int64)
    if smoothing == "kneser-ney":
        for level in range(1, trie.order - 1):
            preceding = np.bincount(suffixes[level + 1], minlength=len(adjusted[level]))
            adjusted[level] = np.where(preceding > 0, preceding, trie.counts[level])
    return adjusted


def _discounted(trie: Trie, adjusted: list[np.ndarray], discounts: tuple[tuple[float, ...], ...]) -> list[np.ndarray]:
    """Per level [n_k] float64: (a - D(a)) / sum of a over the context; level 1 includes the interpolation with 1 / V."""
    discounted = []
    for level, (a, discount) in enumerate(zip(adjusted, discounts, strict=True)):
        parents = trie.parents[level]
        own = np.maximum(a - np.array((0.0, *discount))[np.minimum(a, 3)], 0)
        totals = np.bincount(parents, a)
        discounted.append(own / np.maximum(totals, 1)[parents])
    discounted[0] += (1 - discounted[0].sum()) / trie.vocab_size
    return discounted


def _interpolated(parents: list[np.ndarray], suffixes: list[np.ndarray], discounted: list[np.ndarray]) -> list[np.ndarray]:
    """Per level p(w | c) = discounted(c w) + (1 - sum of discounted over c) p(w | c')."""
    full = [discounted[0]]
    for level in range(1, len(discounted)):
        left = np.maximum(1 - np.bincount(parents[level], discounted[level], minlength=len(full[-1])), 0)
        full.append(discounted[level] + left[parents[level]] * full[-1][suffixes[level]])
    return full


def _relative(trie: Trie, suffixes: list[np.ndarray], smoothing: str, added: float) -> list[np.ndarray]:
    """Per level (n(c w) + A) / (n(c) + A V) for Laplace, n(c w) / n(c) for stupid back-off."""
    extra = added if smoothing == "laplace" else 0.0
    result = []
    for counts, parents in zip(trie.counts, trie.parents, strict=True):
        totals = np.bincount(parents, counts) + extra * trie.vocab_size
        result.append((counts + extra) / np.maximum(totals, 1e-300)[parents])
    return result
