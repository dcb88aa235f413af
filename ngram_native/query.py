"""Asking a table: probabilities, and argmax chains as drafts.

Contract of a draft, for one row: `text` are the ids so far, the start token first. The chain appends the id w with the
largest p(w | last N - 1 ids), again and again, until `allowed` ids are proposed, the end token has been, or the
probability that the whole chain so far is right, the product of its p(w | ...), falls below `min_probability`: an id
only helps if all before it are accepted. Ties go to the smaller id. Probabilities are the table's, whose contract is in
foredraft.ngram_native.table.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from foredraft.ngram_native.table import Table


def draft_reference(
    table: Table, text: list[int], allowed: int, end_token: int, min_probability: float
) -> list[int]:
    """The contract by the whole distribution at every id."""
    proposed, reach = [], 1.0
    while len(proposed) < allowed and end_token not in proposed[-1:]:
        law = distribution(table, np.array(text + proposed))
        reach *= law.max()
        if reach < min_probability:
            break
        proposed.append(int(law.argmax()))
    return proposed


def probability(table: Table, context: np.ndarray, word: int) -> float:
    """p(word | context), context [n] int64 of any length; its last N - 1 ids count."""
    arrays = (table.ids, table.alphas, table.first_child, table.backoffs)
    return _probability_loop(*arrays, table.vocab_size, table.order, np.asarray(context, np.int64), word)


def distribution(table: Table, context: np.ndarray) -> np.ndarray:
    """p(. | context) as [V] float64."""
    arrays = (table.ids, table.alphas, table.first_child, table.backoffs)
    return _distribution_loop(*arrays, table.vocab_size, table.order, np.asarray(context, np.int64))


def draft(
    table: Table, tokens: np.ndarray, lengths: np.ndarray, allowed: np.ndarray, end_token: int, min_probability: float,
    proposed: np.ndarray, proposed_lengths: np.ndarray,
) -> None:
    """Draft for every row, in place.

    tokens [B, T + 1] int64 hold each row's ids so far, lengths [B] int64 count them, allowed [B] int64. Writes
    proposed [B, K] int64 (0 past a row's draft) and proposed_lengths [B] int64.
    """
    _draft_loop(
        table.ids, table.alphas, table.first_child, table.best, table.best_probability, table.vocab_size, table.order,
        tokens, lengths, allowed, end_token, min_probability, proposed, proposed_lengths,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _child(ids, first_child, vocab_size, node, word):
    """The node of (node's n-gram, word), or -1; binary search among the children."""
    low, high = np.int64(first_child[node]), np.int64(first_child[node + 1])
    while low < high:
        middle = (low + high) >> 1
        if ids[middle - vocab_size] < word:
            low = middle + 1
        else:
            high = middle
    if low < np.int64(first_child[node + 1]) and ids[low - vocab_size] == word:
        return low
    return np.int64(-1)


@njit(cache=True, nogil=True)
def _walk(ids, first_child, vocab_size, text, begin, end):
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
def _probability_loop(ids, alphas, first_child, backoffs, vocab_size, order, context, word):
    result = np.float64(alphas[word])
    for size in range(1, min(order - 1, len(context)) + 1):
        node = _walk(ids, first_child, vocab_size, context, len(context) - size, len(context))
        # Suffixes of nodes are nodes: a longer context cannot be there either.
        if node < 0:
            break
        child = _child(ids, first_child, vocab_size, node, word)
        own = np.float64(alphas[child]) if child >= 0 else 0.0
        result = own + backoffs[node] * result
    return result


@njit(cache=True, nogil=True)
def _distribution_loop(ids, alphas, first_child, backoffs, vocab_size, order, context):
    law = alphas[:vocab_size].astype(np.float64)
    for size in range(1, min(order - 1, len(context)) + 1):
        node = _walk(ids, first_child, vocab_size, context, len(context) - size, len(context))
        if node < 0:
            break
        law *= backoffs[node]
        for child in range(first_child[node], first_child[node + 1]):
            law[ids[child - vocab_size]] += alphas[child]
    return law


@njit(cache=True, nogil=True)
def _draft_loop(
    ids, alphas, first_child, best, best_probability, vocab_size, order,
    tokens, lengths, allowed, end_token, min_probability, proposed, proposed_lengths,
):  # fmt: skip
    text = np.empty(order - 1 + proposed.shape[1], np.int64)
    for row in range(tokens.shape[0]):
        proposed[row] = 0
        count = 0
        known = min(order - 1, lengths[row])
        text[:known] = tokens[row, lengths[row] - known : lengths[row]]
        reach = 1.0
        while count < min(allowed[row], proposed.shape[1]):
            end = known + count
            node = np.int64(-1)
            for size in range(min(order - 1, end), 0, -1):
                node = _walk(ids, first_child, vocab_size, text, end - size, end)
                if node >= 0:
                    break
            if node >= 0:
                word, likely = np.int64(best[node]), best_probability[node]
            else:
                word = np.argmax(alphas[:vocab_size])
                likely = alphas[word]
            reach *= likely
            if reach < min_probability:
                break
            proposed[row, count] = text[end] = word
            count += 1
            if word == end_token:
                break
        proposed_lengths[row] = count
