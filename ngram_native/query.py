"""Queries of an n-gram table: probabilities of single tokens and batches, distributions, and greedy n-gram drafts.

Contract of a draft. The draft of a sequence appends the token w with the largest p(w | last N - 1 tokens), repeatedly, until
`allowed` tokens are drafted, the end token is drafted, or the next token is not worth its cost
(foredraft.ngram_native.stopping). Ties go to the smaller token. foredraft.ngram_native.table defines the probabilities.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.rows import copy_row
from foredraft.ngram_native.stopping import is_worth_drafting, is_worth_drafting_jit
from foredraft.ngram_native.table import Table


def draft_reference(table: Table, text: list[int], allowed: int, end_token: int, cost: float) -> list[int]:
    """The contract with the distribution over V at every token; `text` begins with the start token."""
    drafted, reach, expected = [], 1.0, 1.0
    while len(drafted) < allowed and end_token not in drafted[-1:]:
        p = distribution(table, np.array(text + drafted))
        reach *= p.max()
        if not is_worth_drafting(reach, len(drafted), expected, cost):
            break
        expected += reach
        drafted.append(int(p.argmax()))
    return drafted


def probability(table: Table, context: np.ndarray, token: int) -> float:
    """p(token | context); context [n] int64 of any length, of which the last N - 1 tokens are used."""
    return _probability_loop(table.packed, np.asarray(context, np.int64), token)


def probabilities(table: Table, contexts: np.ndarray, tokens: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """p(tokens[i] | contexts[i]) [n] float64, for contexts [n, L] and tokens [n] int64; written to `out` if it is given."""
    out = np.empty(len(tokens)) if out is None else out
    _batch_loop(table.packed, contexts, tokens, out)
    return out


def score(table: Table, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Natural log-probabilities of sequences.

    Parameters
    ----------
    table
        The model.
    tokens
        [n] int64, all sequences one after the other.
    starts
        [m + 1] int64: sequence s is tokens[starts[s] : starts[s + 1]].

    Returns
    -------
    numpy.ndarray
        [n] float64, log p of every token after those before it in its sequence; 0 for the first token of a sequence.
    """
    out = np.zeros(len(tokens))
    _score_loop(table.packed, np.asarray(tokens, np.int64), np.asarray(starts, np.int64), out)
    return out


def distribution(table: Table, context: np.ndarray) -> np.ndarray:
    """p(. | context) [V] float64; context [n] int64."""
    p = np.empty(table.vocab_size)
    _distribution_loop(table.packed, np.asarray(context, np.int64), p)
    return p


def draft(
    table: Table, tokens: np.ndarray, lengths: np.ndarray, allowed: np.ndarray, end_token: int, cost: float,
    proposed: np.ndarray, proposed_lengths: np.ndarray,
) -> None:
    """Draft for every sequence of a batch, in place.

    Parameters
    ----------
    table
        The model.
    tokens
        [B, T + 1] int64, start token and output of each sequence.
    lengths
        [B] int64, tokens of each sequence so far.
    allowed
        [B] int64, the most tokens to draft.
    end_token
        A draft ends with it.
    cost
        Cost of a further query position in passes (foredraft.ngram_native.stopping).
    proposed
        [B, K] int64, written: the drafts, 0 past their ends.
    proposed_lengths
        [B] int64, written.
    """
    _draft_loop(table.packed, tokens, lengths, allowed, end_token, cost, proposed, proposed_lengths)


@njit()
def _child(ids, first_child, vocab_size, node, token):
    """The node of (the n-gram of `node`, token), or -1, by binary search among the children."""
    low, high = np.int64(first_child[node]) - vocab_size, np.int64(first_child[node + 1]) - vocab_size
    end = high
    while low < high:
        middle = (low + high) >> 1
        if ids[middle] < token:
            low = middle + 1
        else:
            high = middle
    if low < end and ids[low] == token:
        return low + vocab_size
    return np.int64(-1)


@njit()
def find_node(ids, first_child, vocab_size, text, begin, end):
    """The node of text[begin:end], one token or more, or -1."""
    node = np.int64(text[begin])
    if node < 0 or node >= vocab_size:
        return np.int64(-1)
    for position in range(begin + 1, end):
        node = _child(ids, first_child, vocab_size, node, text[position])
        if node < 0:
            return node
    return node


@njit()
def _probability_loop(packed, context, token):
    ids, unigrams, probabilities, codes, first_child, backoffs, _, _, vocab_size, order, strict, _ = packed
    end = len(context)
    size = min(order - 1, end)
    weight = 1.0
    while size > 0:
        node = find_node(ids, first_child, vocab_size, context, end - size, end)
        if node >= 0:
            child = _child(ids, first_child, vocab_size, node, token)
            if child >= 0:
                value = probabilities[child - vocab_size]
                return weight * (codes[np.int64(value)] if codes.shape[0] else value)
            weight *= backoffs[node]
        if strict:
            return weight / vocab_size
        size -= 1
    return weight * unigrams[token]


@njit()
def _batch_loop(packed, contexts, tokens, out):
    for i in range(len(tokens)):
        out[i] = _probability_loop(packed, contexts[i], tokens[i])


@njit()
def _score_loop(packed, tokens, starts, out):
    order = packed[9]
    for sequence in range(len(starts) - 1):
        for position in range(starts[sequence] + 1, starts[sequence + 1]):
            begin = max(starts[sequence], position - order + 1)
            out[position] = np.log(_probability_loop(packed, tokens[begin:position], tokens[position]))


@njit()
def _distribution_loop(packed, context, distribution):
    """Write p(. | context) to distribution [V] float64."""
    ids, unigrams, probabilities, codes, first_child, backoffs, _, _, vocab_size, order, strict, _ = packed
    end = len(context)
    longest = min(order - 1, end)
    copy_row(unigrams, distribution)
    for size in range(longest if strict else 1, longest + 1):
        if size == 0:
            break
        node = find_node(ids, first_child, vocab_size, context, end - size, end)
        if strict:
            distribution[:] = 1 / vocab_size
        if node < 0:
            # every suffix of a node is a node, so no longer context is stored
            break
        distribution *= backoffs[node]
        for child in range(np.int64(first_child[node]) - vocab_size, np.int64(first_child[node + 1]) - vocab_size):
            value = probabilities[child]
            distribution[ids[child]] = codes[np.int64(value)] if codes.shape[0] else value


@njit()
def likeliest(packed, text, end):
    """The token with the largest probability after text[:end], and that probability."""
    ids, unigrams, _, codes, first_child, _, best, best_probability, vocab_size, order, strict, top = packed
    size = min(order - 1, end)
    while size > 0:
        node = find_node(ids, first_child, vocab_size, text, end - size, end)
        if node >= 0:
            value = best_probability[node]
            return np.int64(best[node]), np.float64(codes[np.int64(value)] if codes.shape[0] else value)
        if strict:
            return np.int64(0), 1.0 / vocab_size
        size -= 1
    return np.int64(top), np.float64(unigrams[top])


def log_distributions(table: Table, texts: np.ndarray, lengths: np.ndarray, logits: np.ndarray, largest: np.ndarray) -> None:
    """Write log p(. | text) to logits [B, V] float32 and the largest p to largest [B] float64.

    texts [B, L] int64; text b is texts[b, : lengths[b]].
    """
    _log_distributions_loop(table.packed, texts, lengths, logits, largest)


@njit()
def _log_distributions_loop(packed, texts, lengths, logits, largest):
    distribution = np.empty(packed[8])
    for b in range(len(texts)):
        _distribution_loop(packed, texts[b, : lengths[b]], distribution)
        largest[b] = distribution.max()
        for token in range(len(distribution)):
            logits[b, token] = np.log(distribution[token])


@njit()
def _draft_loop(packed, tokens, lengths, allowed, end_token, cost, proposed, proposed_lengths):
    order = packed[9]
    text = np.empty(order - 1 + proposed.shape[1], np.int64)
    for b in range(tokens.shape[0]):
        proposed[b] = 0
        count = 0
        known = min(order - 1, lengths[b])
        copy_row(tokens[b, lengths[b] - known : lengths[b]], text)
        reach, expected = 1.0, 1.0
        while count < min(allowed[b], proposed.shape[1]):
            token, likely = likeliest(packed, text, known + count)
            reach *= likely
            if not is_worth_drafting_jit(reach, count, expected, cost):
                break
            expected += reach
            proposed[b, count] = text[known + count] = token
            count += 1
            if token == end_token:
                break
        proposed_lengths[b] = count
