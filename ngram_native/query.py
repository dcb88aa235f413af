"""Asking a table: probabilities, one by one and in batches, and argmax chains as drafts.

Contract of a draft, for one row: `text` are the ids so far, the start token first. The chain appends the id w with the
largest p(w | last N - 1 ids), again and again, until `allowed` ids are proposed, the end token has been, or the next id
costs more than it promises: with r_i the probability that the first i ids are all right (the product of their p) and a
further row of a pass costing `cost` of a pass, the n-th id is drafted only if r_n / cost exceeds the tokens per pass that
the draft has without it, (1 + r_1 + ... + r_{n-1}) / (1 + cost (n - 1)). Ties go to the smaller id. Probabilities are the
table's, whose contract is in foredraft.ngram_native.table.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from foredraft.ngram_native.table import Table

# What one more row of a pass costs, as a share of a pass: about what the embedded target takes.
COST = 0.05


def draft_reference(table: Table, text: list[int], allowed: int, end_token: int, cost: float) -> list[int]:
    """The contract by the whole distribution at every id."""
    proposed, reach, tokens = [], 1.0, 1.0
    while len(proposed) < allowed and end_token not in proposed[-1:]:
        distribution = distribution(table, np.array(text + proposed))
        reach *= distribution.max()
        if reach * (1 + cost * len(proposed)) <= cost * tokens:
            break
        tokens += reach
        proposed.append(int(distribution.argmax()))
    return proposed


def probability(table: Table, context: np.ndarray, word: int) -> float:
    """p(word | context), context [n] int64 of any length; its last N - 1 ids count."""
    return _probability_loop(table.packed, np.asarray(context, np.int64), word)


def probabilities(table: Table, contexts: np.ndarray, words: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """p(words[i] | contexts[i]) for a batch: contexts [n, L] int64, words [n] int64 -> [n] float64."""
    out = np.empty(len(words)) if out is None else out
    _batch_loop(table.packed, contexts, words, out)
    return out


def score(table: Table, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """log p of every id after the first of its sequence, natural: [n] float64, 0 for the first ones (they are given).

    tokens [n] int64; sequence s is tokens[starts[s] : starts[s + 1]].
    """
    out = np.zeros(len(tokens))
    _score_loop(table.packed, np.asarray(tokens, np.int64), np.asarray(starts, np.int64), out)
    return out


def distribution(table: Table, context: np.ndarray) -> np.ndarray:
    """p(. | context) as [V] float64."""
    distribution = np.empty(table.vocab_size)
    warp_loop(table.packed, np.asarray(context, np.int64), distribution)
    return distribution


def draft(
    table: Table, tokens: np.ndarray, lengths: np.ndarray, allowed: np.ndarray, end_token: int, cost: float,
    proposed: np.ndarray, proposed_lengths: np.ndarray,
) -> None:
    """Draft for every row, in place.

    tokens [B, T + 1] int64 hold each row's ids so far, lengths [B] int64 count them, allowed [B] int64. Writes
    proposed [B, K] int64 (0 past a row's draft) and proposed_lengths [B] int64.
    """
    _draft_loop(table.packed, tokens, lengths, allowed, end_token, cost, proposed, proposed_lengths)


@njit(cache=True, nogil=True)
def _child(ids, first_child, vocab_size, node, word):
    """The node of (node's n-gram, word), or -1; binary search among the children."""
    low, high = np.int64(first_child[node]) - vocab_size, np.int64(first_child[node + 1]) - vocab_size
    end = high
    while low < high:
        middle = (low + high) >> 1
        if ids[middle] < word:
            low = middle + 1
        else:
            high = middle
    if low < end and ids[low] == word:
        return low + vocab_size
    return np.int64(-1)


@njit(cache=True, nogil=True)
def walk(ids, first_child, vocab_size, text, begin, end):
    """The node of text[begin:end], at least one id, or -1."""
    node = np.int64(text[begin])
    if node < 0 or node >= vocab_size:
        return np.int64(-1)
    for position in range(begin + 1, end):
        node = _child(ids, first_child, vocab_size, node, text[position])
        if node < 0:
            return node
    return node


@njit(cache=True, nogil=True)
def _probability_loop(packed, context, word):
    ids, unigrams, probabilities, codes, first_child, backoffs, _, _, vocab_size, order, strict, _ = packed
    end = len(context)
    size = min(order - 1, end)
    weight = 1.0
    while size > 0:
        node = walk(ids, first_child, vocab_size, context, end - size, end)
        if node >= 0:
            child = _child(ids, first_child, vocab_size, node, word)
            if child >= 0:
                value = probabilities[child - vocab_size]
                return weight * (codes[np.int64(value)] if codes.shape[0] else value)
            weight *= backoffs[node]
        if strict:
            return weight / vocab_size
        size -= 1
    return weight * unigrams[word]


@njit(cache=True, nogil=True)
def _batch_loop(packed, contexts, words, out):
    for i in range(len(words)):
        out[i] = _probability_loop(packed, contexts[i], words[i])


@njit(cache=True, nogil=True)
def _score_loop(packed, tokens, starts, out):
    order = packed[9]
    for sequence in range(len(starts) - 1):
        for position in range(starts[sequence] + 1, starts[sequence + 1]):
            begin = max(starts[sequence], position - order + 1)
            out[position] = np.log(_probability_loop(packed, tokens[begin:position], tokens[position]))


@njit(cache=True, nogil=True)
def warp_loop(packed, context, distribution):
    """p(. | context) into distribution [V] float64."""
    ids, unigrams, probabilities, codes, first_child, backoffs, _, _, vocab_size, order, strict, _ = packed
    end = len(context)
    longest = min(order - 1, end)
    distribution[:] = unigrams
    for size in range(longest if strict else 1, longest + 1):
        if size == 0:
            break
        node = walk(ids, first_child, vocab_size, context, end - size, end)
        if strict:
            distribution[:] = 1 / vocab_size
        if node < 0:
            # Suffixes of nodes are nodes: a longer context cannot be there either.
            break
        distribution *= backoffs[node]
        for child in range(np.int64(first_child[node]) - vocab_size, np.int64(first_child[node + 1]) - vocab_size):
            value = probabilities[child]
            distribution[ids[child]] = codes[np.int64(value)] if codes.shape[0] else value


@njit(cache=True, nogil=True)
def likeliest(packed, text, end):
    """The id with the largest probability after text[:end], and that probability."""
    ids, unigrams, _, codes, first_child, _, best, best_probability, vocab_size, order, strict, top = packed
    size = min(order - 1, end)
    while size > 0:
        node = walk(ids, first_child, vocab_size, text, end - size, end)
        if node >= 0:
            value = best_probability[node]
            return np.int64(best[node]), np.float64(codes[np.int64(value)] if codes.shape[0] else value)
        if strict:
            return np.int64(0), 1.0 / vocab_size
        size -= 1
    return np.int64(top), np.float64(unigrams[top])


def log_distributions(table: Table, texts: np.ndarray, lengths: np.ndarray, logits: np.ndarray, largest: np.ndarray) -> None:
    """log p(. | text) of every row into logits [B, V] float32, and the largest p into largest [B] float64.

    texts [B, L] int64, of which row b has its first lengths[b].
    """
    _log_distributions_loop(table.packed, texts, lengths, logits, largest)


@njit(cache=True, nogil=True)
def _log_distributions_loop(packed, texts, lengths, logits, largest):
    distribution = np.empty(packed[8])
    for row in range(len(texts)):
        warp_loop(packed, texts[row, : lengths[row]], distribution)
        largest[row] = distribution.max()
        for word in range(len(distribution)):
            logits[row, word] = np.log(distribution[word])


@njit(cache=True, nogil=True)
def _draft_loop(packed, tokens, lengths, allowed, end_token, cost, proposed, proposed_lengths):
    order = packed[9]
    text = np.empty(order - 1 + proposed.shape[1], np.int64)
    for row in range(tokens.shape[0]):
        proposed[row] = 0
        count = 0
        known = min(order - 1, lengths[row])
        text[:known] = tokens[row, lengths[row] - known : lengths[row]]
        reach, expected = 1.0, 1.0
        while count < min(allowed[row], proposed.shape[1]):
            word, likely = likeliest(packed, text, known + count)
            reach *= likely
            if reach * (1 + cost * count) <= cost * expected:
                break
            expected += reach
            proposed[row, count] = text[known + count] = word
            count += 1
            if word == end_token:
                break
        proposed_lengths[row] = count
