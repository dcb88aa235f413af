"""From counts to probabilities: the smoothings, and pruning, as a Table.

Contract. For an n-gram c w of k ids with adjusted count a(c w), and c' = c without its first id:

kneser-ney (interpolated and modified: Chen and Goodman 1998, section 3; Kneser and Ney 1995) and absolute (Ney, Essen and
Kneser 1994):

    p(w | c) = (a(c w) - D_k(a(c w))) / sum_v a(c v)  +  left(c) p(w | c'),     p(w | no context) ends in 1 / V,

where left(c) is the mass that the discounts took (and pruning, afterwards), so that every p(. | c) sums to 1.
For kneser-ney a is the count at the highest order, below it the number of distinct ids seen before the n-gram; an n-gram
that only ever opens a sequence keeps its count. D_k(1), D_k(2), D_k(3+) are their equation (26), from how many n-grams of
order k have a = 1..4. For absolute a is the count at every order, with one discount n1 / (n1 + 2 n2) per order.

laplace: p(w | c) = (n(c w) + A) / (n(c) + A V), n(c) = sum_v n(c v), after the last N - 1 ids or as many as there are, and
1 / V after a context never seen: the original project's model, which backs off for short texts alone.
stupid-backoff (Brants et al. 2007): n(c w) / n(c) if c w was seen, else F p(w | c'). A score; it does not sum to 1. After a
context never seen F is left out: it would be the same for every w.

Kneser-Ney is the default. On a trained target's summaries absolute discounting drafts about 1 % more tokens a round, being
surer of rare n-grams and so drafting further, but Kneser-Ney about 1 % more for what its rounds cost, a drafted id being
query.COST of a pass, at every order from 3 up and temperatures 0 and 1 (`foredraft bench ngram --parts acceptance`).

Pruning drops n-grams of two or more ids: first those with count < min_count, then those with the smallest
count(c w) (p(w | c) - what p(w | c) is without the n-gram) until the arrays fit a budget in bytes. This is the weighted
difference of Seymore and Rosenfeld (1996) without its logarithms: a draft is worth the probability that it is accepted, not
its code length, and at a few megabytes the table drafts measurably better so. A kept n-gram keeps its prefixes and suffixes.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from foredraft.ngram_native.assemble import Levels, assemble, budget
from foredraft.ngram_native.count import Counts
from foredraft.ngram_native.table import Table
from foredraft.ngram_native.trie import Trie

INTERPOLATED = ("kneser-ney", "absolute")
SMOOTHINGS = (*INTERPOLATED, "laplace", "stupid-backoff")
# Used when a corpus is too small to estimate discounts from (the values that lmplz falls back to).
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


def probability_reference(
    counts: Counter[tuple[int, ...]], order: int, vocab_size: int, smoothing: str, context: tuple[int, ...], word: int,
    discount: float | None = None, added: float = 1.0, factor: float = 0.4,
) -> float:
    """The contract without pruning, straight from a dictionary of counts of every order."""
    context = context[len(context) - min(len(context), order - 1) :]
    if smoothing in ("laplace", "stupid-backoff"):
        return _simple_reference(counts, vocab_size, smoothing, context, word, added, factor)
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

    return conditional(context)


def _simple_reference(counts, vocab_size, smoothing, context, word, added, factor) -> float:
    seen = counts.get((*context, word), 0)
    total = sum(n for gram, n in counts.items() if gram[:-1] == context and len(gram) == len(context) + 1)
    if smoothing == "laplace":
        return (seen + added) / (total + added * vocab_size)
    if seen or not context:
        return seen / total
    return (factor if total else 1) * _simple_reference(counts, vocab_size, smoothing, context[1:], word, added, factor)


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
    max_bytes: int | None = None, added: float = 1.0, factor: float = 0.4, quantise: bool = False,
) -> Table:
    """Smooth and prune counts.

    `discount` (0..1) replaces the estimated ones of kneser-ney and absolute; `added` is Laplace's A, `factor` stupid
    back-off's F; `max_bytes` bounds Table.nbytes; `quantise` stores probabilities in 16 bits.
    """
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"smoothing must be one of {', '.join(SMOOTHINGS)}, not {smoothing!r}")
    if discount is not None and not 0 < discount < 1:
        raise ValueError(f"discount must lie between 0 and 1, got {discount}")
    if not added > 0 or not 0 < factor <= 1:
        raise ValueError(f"added must lie above 0 and factor in 0..1, got {added} and {factor}")
    trie = counts.trie()
    suffixes = trie.suffixes()
    if smoothing in INTERPOLATED:
        adjusted = _adjusted(trie, suffixes, smoothing)
        parameters = tuple(_discounts(a, smoothing, discount) for a in adjusted)
        masses = _alphas(trie, adjusted, parameters)
        whole = _interpolated(trie.parents, suffixes, masses)
        left = [masses[0], *(w - m for w, m in zip(whole[1:], masses[1:], strict=True))]
    else:
        parameters = ((added if smoothing == "laplace" else factor,),)
        whole = masses = _relative(trie, suffixes, smoothing, added)
        uniform = 1 / trie.vocab_size
        left = [whole[0], *(np.full(len(w), uniform) if smoothing == "laplace" else factor * whole[k][suffixes[k + 1]]
                            for k, w in enumerate(whole[1:]))]
    keep = [np.ones(len(level), bool) for level in masses]
    if min_count > 1:
        keep[1:] = [level >= min_count for level in trie.counts[1:]]
    if max_bytes is not None:
        gains = [np.maximum(n * (p - q), 0) for n, p, q in zip(trie.counts, whole, left, strict=True)]
        budget(trie.parents, suffixes, gains, keep, max_bytes, quantise)
    levels = Levels(trie.ids, trie.parents, suffixes, masses).kept(keep)
    if smoothing in INTERPOLATED:
        levels.probabilities = _interpolated(levels.parents, levels.suffixes, levels.probabilities)
    return assemble(levels, smoothing, parameters, counts.tokenizer, quantise)


def _adjusted(trie: Trie, suffixes: list[np.ndarray], smoothing: str) -> list[np.ndarray]:
    adjusted = [level.copy() for level in trie.counts]
    if trie.order > 1:
        # The first id of a sequence is given, not predicted, so unigrams are counted as what follows something.
        weights = None if smoothing == "kneser-ney" else trie.counts[1]
        adjusted[0] = np.bincount(suffixes[1], weights, minlength=trie.vocab_size).astype(np.int64)
    if smoothing == "kneser-ney":
        for level in range(1, trie.order - 1):
            preceding = np.bincount(suffixes[level + 1], minlength=len(adjusted[level]))
            adjusted[level] = np.where(preceding > 0, preceding, trie.counts[level])
    return adjusted


def _alphas(trie: Trie, adjusted: list[np.ndarray], discounts: tuple[tuple[float, ...], ...]) -> list[np.ndarray]:
    """Per level [n_k] float64: (a - D(a)) / total of the context; level 1 with its back-off to 1 / V folded in."""
    alphas = []
    for level, (a, taken) in enumerate(zip(adjusted, discounts, strict=True)):
        parents = trie.parents[level]
        own = np.maximum(a - np.array((0.0, *taken))[np.minimum(a, 3)], 0)
        totals = np.bincount(parents, a)
        alphas.append(own / np.maximum(totals, 1)[parents])
    alphas[0] += (1 - alphas[0].sum()) / trie.vocab_size
    return alphas


def _interpolated(parents: list[np.ndarray], suffixes: list[np.ndarray], alphas: list[np.ndarray]) -> list[np.ndarray]:
    """Per level p(w | c) = alpha(c w) + (1 - all alphas of c) p(w | c')."""
    whole = [alphas[0]]
    for level in range(1, len(alphas)):
        left = np.maximum(1 - np.bincount(parents[level], alphas[level], minlength=len(whole[-1])), 0)
        whole.append(alphas[level] + left[parents[level]] * whole[-1][suffixes[level]])
    return whole


def _relative(trie: Trie, suffixes: list[np.ndarray], smoothing: str, added: float) -> list[np.ndarray]:
    """Per level (n(c w) + A) / (n(c) + A V) for Laplace, n(c w) / n(c) for stupid back-off."""
    extra = added if smoothing == "laplace" else 0.0
    result = []
    for counts, parents in zip(trie.counts, trie.parents, strict=True):
        totals = np.bincount(parents, counts) + extra * trie.vocab_size
        result.append((counts + extra) / np.maximum(totals, 1e-300)[parents])
    return result
