"""Copying: what followed the last ids the previous time they were seen, and where copying and a table take turns.

Contract of one proposal, for one row (ids are int64):

    source   [S]  the ids of the request's source text
    output   [n]  the ids emitted so far, without the start token
    allowed       the most ids that may be proposed
    -> ids [0..allowed], each copied, or the table's likeliest (foredraft.ngram_native.query), if there is a table

Id by id: while a place to copy from is known, its next id is the candidate, trusted with confidence[m], m being the length
of the match that led there, ids copied since included, up to max_match. Else such a place is looked for: an earlier
occurrence of the last m ids (drafted ones included), m from max_match down to min_match, in the source, in the output, in
the history of earlier requests. Of the first CANDIDATES of each text at the largest m that has any, the best one has, in
this order: the most ids to copy (up to those still allowed), the table's likeliest id next, the source before the output
before the history, and is the earliest of the source, the latest elsewhere. With no output yet, copying begins at the
source's first id, with confidence[0]. If the table's likeliest id has a larger probability than the copy's confidence, it is
taken instead; where it is another id, the place is given up. The draft ends with the end token, where neither has a
candidate, and where the next id would not pay (the rule of foredraft.ngram_native.query). Copying never runs past the end of
its text, and never proposes the source's own end token: a summary rarely ends where its article does.

The order of the ranks, and the source's beginning, are measured on a trained target's greedy summaries: a match a few ids
back leaves little to copy, and summaries prefer what an article says first. Matches longer than four ids drafted no better.

Confidences are counted: copied ids that the target tested and kept, by m, PRIOR of them assumed before.
"""

from __future__ import annotations

import numpy as np

from foredraft.ngram_native.prompt_lookup.hash_chains import CANDIDATES, HISTORY, OUTPUT, SOURCE
from foredraft.ngram_native.query import likeliest
from foredraft.ngram_native.table import Table


def find_reference(source: list[int], output: list[int], emitted: int, room: int, min_match: int, max_match: int,
                   history: list[int], favourite: int | None) -> tuple[list[int], int] | None:
    """The ids that can be copied from the best place, and its match, by brute force. `output` includes drafted ids; only
    the first `emitted` of it can be copied from."""
    texts = ((OUTPUT, output[:emitted]), (SOURCE, source), (HISTORY, history))
    for m in range(min(max_match, len(output)), min_match - 1, -1):
        best, rank = None, None
        for kind, text in texts:
            places = [j for j in range(m - 1, len(text) - 1) if text[j - m + 1 : j + 1] == output[len(output) - m :]]
            if kind != SOURCE:
                places.reverse()
            for j in places[:CANDIDATES]:
                copied = text[j + 1 : j + 1 + room]
                order = {SOURCE: 2, OUTPUT: 1, HISTORY: 0}[kind]
                this = (len(copied), copied[0] == favourite, order, -j if kind == SOURCE else j)
                if rank is None or this > rank:
                    best, rank = text[j + 1 :], this
        if best is not None:
            return best, m
    return None


def propose_reference(source: list[int], output: list[int], allowed: int, min_match: int, max_match: int, end_token: int,
                      confidence: list[float], cost: float = 0.0, table: Table | None = None, history: list[int] = ()):
    """The contract by brute force: (ids, who proposed each: "lookup" or "ngram")."""
    if source and source[-1] == end_token:
        source = source[:-1]
    drafted, proposers, place, match = [], [], [], 0
    reach, expected = 1.0, 1.0
    while len(drafted) < allowed and drafted[-1:] != [end_token]:
        text = [0, *output, *drafted]
        word, likely = likeliest(table.packed, np.array(text), len(text)) if table else (None, -1.0)
        if not place and not output and not drafted:
            place, match = source, 0
        elif not place:
            found = find_reference(source, output + drafted, len(output), allowed - len(drafted), min_match, max_match,
                                   list(history), word)
            place, match = found or ([], 0)
        copies = bool(place) and confidence[match] >= likely
        if not copies and not table:
            break
        token, trust = (place[0], confidence[match]) if copies else (word, likely)
        reach *= trust
        if reach * (1 + cost * len(drafted)) <= cost * expected:
            break
        expected += reach
        drafted.append(token)
        proposers.append("lookup" if copies else "ngram")
        kept = bool(place) and place[0] == token
        place, match = (place[1:], min(match + 1, max_match)) if kept else ([], 0)
    return drafted, proposers
