"""Prompt lookup: draft the tokens that followed an earlier occurrence of the last tokens, or a table's most probable ones.

Prompt lookup (Saxena 2023) copies from the source, from the output so far, and from the outputs of earlier requests. With an
n-gram table, each token is the copied one or the table's. Contract of the draft of one sequence:

    source   [S]  the tokens of the request's source
    output   [n]  the tokens emitted so far, without the start token
    allowed       the most tokens to draft
    -> tokens [0..allowed]

Token by token: while there is a position to copy from, its next token is the candidate, with probability confidence[m],
where m is the length of the match that led there plus the tokens copied since, at most max_match. Otherwise a position is
searched: an earlier occurrence of the last m tokens (drafted ones included) in the source, the output and the history, for m
from max_match down to min_match. At the first m with an occurrence, the first CANDIDATES of each text are ranked by (1) the
number of tokens to copy, at most those still allowed, (2) whether the next token is the table's most probable one, (3) the
text: source, output, history, (4) the position: the earliest of the source, the latest of the others. Before there is
output, copying begins at the source position where most earlier outputs began, with confidence[0]; before any output was
seen, at position 0. So a task's prefix, such as "summarize: ", is soon no longer copied.

Where no match is longer than one token, the first token of a draft may also be copied from behind a corrected word
(word_gap.py), with a confidence of its own, if that is not below confidence[1] of a match of one token. The tokens copied
after it count as if it were a match of one token. With a min_match above 1 neither earlier outputs nor corrected words
change a draft: it depends on the request alone.

If the table's most probable token has a larger probability than the copy's confidence, it is drafted instead; if it differs
from the candidate, the position is dropped. The draft ends with the end token, where there is no candidate, and where the
next token is not worth its cost (foredraft.ngram_native.stopping). Copying ends with the text that is copied, and before the
source's end token, because a summary rarely ends where its article does.

The ranking was chosen on a trained target's greedy summaries: a match a few tokens back leaves little to copy, and summaries
prefer the beginning of an article. Matches of more than four tokens drafted no better.

confidence[m] is the share of copied tokens with match length m that were accepted, counted with a prior of PRIOR tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foredraft.ngram_native.prompt_lookup.hash_chains import CANDIDATES, HISTORY, OUTPUT, SOURCE
from foredraft.ngram_native.prompt_lookup.word_gap import behind_word_reference
from foredraft.ngram_native.query import likeliest
from foredraft.ngram_native.stopping import is_worth_drafting
from foredraft.ngram_native.table import Table


def find_reference(source: list[int], output: list[int], emitted: int, room: int, min_match: int, max_match: int,
                   history: list[int], preferred: int | None) -> tuple[list[int], int] | None:
    """The tokens after the best match and its length, by brute force. `output` includes drafted tokens; only the first
    `emitted` of it can be copied."""
    texts = ((OUTPUT, output[:emitted]), (SOURCE, source), (HISTORY, history))
    for m in range(min(max_match, len(output)), min_match - 1, -1):
        best, rank = None, None
        for kind, text in texts:
            positions = [j for j in range(m - 1, len(text) - 1) if text[j - m + 1 : j + 1] == output[len(output) - m :]]
            if kind != SOURCE:
                positions.reverse()
            for j in positions[:CANDIDATES]:
                copied = text[j + 1 : j + 1 + room]
                order = {SOURCE: 2, OUTPUT: 1, HISTORY: 0}[kind]
                this = (len(copied), copied[0] == preferred, order, -j if kind == SOURCE else j)
                if rank is None or this > rank:
                    best, rank = text[j + 1 :], this
        if best is not None:
            return best, m
    return None


def propose_reference(source: list[int], output: list[int], allowed: int, min_match: int, max_match: int, end_token: int,
                      confidence: list[float], cost: float = 0.0, table: Table | None = None, history: list[int] = (),
                      start: int = 0, word_starts: Sequence[bool] = (), gap_confidence: float = 0.0):
    """The contract by brute force: (tokens, the proposer of each: "lookup" or "ngram").

    start: where copying begins before there is output. Without word_starts nothing is copied from behind a word.
    """
    if source and source[-1] == end_token:
        source = source[:-1]
    drafted, proposers, following, match = [], [], [], 0
    reach, expected = 1.0, 1.0
    while len(drafted) < allowed and drafted[-1:] != [end_token]:
        text = [0, *output, *drafted]
        best, likely = likeliest(table.packed, np.array(text), len(text)) if table else (None, -1.0)
        trust_copy = None
        if not following and not output and not drafted:
            following, match = source[start if start < len(source) and min_match == 1 else 0 :], 0
        elif not following:
            found = find_reference(source, output + drafted, len(output), allowed - len(drafted), min_match, max_match,
                                   list(history), best)
            following, match = found or ([], 0)
            if match < 2 and not drafted and len(word_starts) and min_match == 1 and (
                    not match or gap_confidence >= confidence[1]):
                behind = behind_word_reference(source, output, max_match, word_starts)
                if behind >= 0:
                    following, match, trust_copy = source[behind:], 1, gap_confidence
        if trust_copy is None:
            trust_copy = confidence[match]
        copies = bool(following) and trust_copy >= likely
        if not copies and not table:
            break
        token, trust = (following[0], trust_copy) if copies else (best, likely)
        reach *= trust
        if not is_worth_drafting(reach, len(drafted), expected, cost):
            break
        expected += reach
        drafted.append(token)
        proposers.append("lookup" if copies else "ngram")
        continues = bool(following) and following[0] == token
        following, match = (following[1:], min(match + 1, max_match)) if continues else ([], 0)
    return drafted, proposers
