"""Copies that go on behind a corrected word: where to copy from when the last tokens do not occur in the source.

A target that corrects its source copies it except for single words. After such a word the output's last tokens match
nothing, but those before it do. Contract:

    source [S], output [n]      as in copy_rules
    word_starts [V] bool        tokens that begin a word
    -> the next position to copy, or -1

The tail of the output is its last `gap` tokens, 1 to GAP, the fewest first: one word, or the rest of one. Before the tail
the longest match in the source of max_match down to 2 tokens is searched, the earliest of equal length. If the tail begins
a word, the word that follows the match was replaced: copying goes on behind it. Otherwise the tail was inserted, as a
punctuation mark is: copying goes on right behind the match.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.ngram_native.prompt_lookup.hash_chains import SOURCE, VISITS, _agrees, _bucket

# Tokens of a corrected word at most.
GAP = 4
# Shorter matches before a corrected word are often accidental.
SHORTEST = 2


def behind_word_reference(source: list[int], output: list[int], max_match: int, word_starts: Sequence[bool]) -> int:
    """The contract by brute force; `source` without its end token."""
    for gap in range(1, min(GAP, len(output)) + 1):
        tail, before = output[-gap:], output[:-gap]
        if any(word_starts[token] for token in tail[1:]):
            break
        for match in range(min(max_match, len(before)), SHORTEST - 1, -1):
            found = [j + 1 for j in range(match - 1, len(source) - 1)
                     if source[j - match + 1 : j + 1] == before[len(before) - match :]]
            if found:
                position = found[0]
                if word_starts[tail[0]]:
                    position += 1
                    while position < len(source) and not word_starts[source[position]]:
                        position += 1
                return position if position < len(source) else -1
    return -1


@njit()
def behind_word(b, output, emitted, max_match, text, stop, heads, source_links, word_starts):
    """The contract for sequence b: output[1 : emitted + 1], text[:stop]."""
    V = len(word_starts)
    for gap in range(1, min(GAP, emitted) + 1):
        # the tail grows to the left; a word may start at its first token only
        if gap > 1 and _starts(output[emitted - gap + 2], word_starts, V):
            return np.int64(-1)
        last = emitted - gap
        for match in range(min(max_match, last), SHORTEST - 1, -1):
            link, visits = np.int64(heads[b, SOURCE, _bucket(output, last, match)]), 0
            while link >= 0 and visits < VISITS:
                visits += 1
                position, length = link // max_match, link % max_match + 1
                if length == match and position + 1 < stop and _agrees(text, position, output, last, match):
                    position += 1
                    if _starts(output[last + 1], word_starts, V):
                        position += 1
                        while position < stop and not _starts(text[position], word_starts, V):
                            position += 1
                    return position if position < stop else np.int64(-1)
                link = np.int64(source_links[b, length - 1, position])
    return np.int64(-1)


@njit()
def _starts(token, word_starts, V):
    return token < V and word_starts[token]
