"""Trees of copies: the draft of foredraft.ngram_native.prompt_lookup.copy_rules with branches where other matches differ.

    trunk    the draft, the tree's first branch
    tree     parents [N], the tree's shape (engine/drafters/tree_shape.py): node j follows query position parents[j], where
             0 is the last committed token and i + 1 is node i
    -> tokens, and for each the query position that it follows (0 the last committed token, i + 1 the i-th drafted token),
       `allowed` at most

Matches are taken from the longest down to min_match, at each length those of the source, the earliest first, then those of
the output, the latest first, at most CANDIDATES of each. The tokens after a match are followed down the tree while they
agree with it. At the first token that differs they branch, if the shape has a free child there, and continue as far as the
shape does. A match that agrees up to the end of a branch adds nothing, because the draft ends where the next token is not
worth its cost.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.ngram_native.prompt_lookup.hash_chains import CANDIDATES, OUTPUT, SOURCE, VISITS, WINDOW, _agrees, _bucket


def branch_reference(source: list[int], output: list[int], trunk: list[int], allowed: int, min_match: int, max_match: int,
                     end_token: int, parents: list[int]) -> tuple[list[int], list[int]]:
    """The contract by brute force; `output` without the start token."""
    if source and source[-1] == end_token:
        source = source[:-1]
    tokens, drafted_parents, position_of = [], [], {0: 0}

    def insert(text: list[int], is_trunk: bool) -> None:
        node, branched = 0, is_trunk
        for token in text:
            children = [child + 1 for child, parent in enumerate(parents) if parent == node]
            known = [child for child in children if child in position_of]
            agreeing = [child for child in known if tokens[position_of[child] - 1] == token]
            if agreeing:
                node = agreeing[0]
                continue
            if len(known) == len(children) or len(tokens) >= allowed or not (branched or known):
                return
            tokens.append(token)
            drafted_parents.append(position_of[node])
            node = next(child for child in children if child not in position_of)
            position_of[node], branched = len(tokens), True

    insert(trunk, True)
    for match in range(min(max_match, len(output)), min_match - 1, -1):
        for text, positions in ((source, range(len(source) - 1)), (output, range(len(output) - 2, -1, -1))):
            matching = [j for j in positions if j + 1 >= match and text[j - match + 1 : j + 1] == output[-match:]]
            for position in matching[:CANDIDATES]:
                insert(text[position + 1 :], False)
    return tokens, drafted_parents


@njit()
def _insert(text, begin, end, is_trunk, room, tree, position_of, drafted, parents, count):
    """Insert text[begin:end] into the tree of `count` tokens; returns the new count."""
    N = tree.shape[0]
    node, branched = 0, is_trunk
    for position in range(begin, end):
        agreeing, free, known = -1, -1, False
        for child in range(node, N):
            if tree[child] == node:
                at = position_of[child + 1]
                if at < 0:
                    free = child + 1 if free < 0 else free
                else:
                    known = True
                    if agreeing < 0 and drafted[at - 1] == text[position]:
                        agreeing = child + 1
        if agreeing >= 0:
            node = agreeing
            continue
        if free < 0 or count >= room or not (branched or known):
            break
        drafted[count], parents[count] = text[position], position_of[node]
        count += 1
        node, branched = free, True
        position_of[node] = count
    return count


@njit()
def _branch_loop(tokens, lengths, allowed, end_token, min_match, max_match, source, source_lengths, heads, source_links,
                 output_links, tree, proposer, drafted, drafted_lengths, parents, proposers):
    position_of = np.empty(tree.shape[0] + 1, np.int64)
    for b in range(tokens.shape[0]):
        parents[b] = 0
        trunk = drafted[b, : drafted_lengths[b]].copy()
        room, emitted = min(allowed[b], drafted.shape[1]), lengths[b] - 1
        if len(trunk) == 0 or b >= source_lengths.shape[0]:
            continue
        position_of[:] = -1
        position_of[0] = 0
        first = _insert(trunk, 0, len(trunk), True, room, tree, position_of, drafted[b], parents[b], 0)
        count, output, text, stop = first, tokens[b], source[b], source_lengths[b]
        if stop > 0 and text[stop - 1] == end_token:
            stop -= 1
        oldest = max(1, emitted - WINDOW + 1)
        for match in range(min(max_match, emitted), min_match - 1, -1):
            bucket = _bucket(output, emitted, match)
            link, found, visits = np.int64(heads[b, SOURCE, bucket]), 0, 0
            while link >= 0 and found < CANDIDATES and visits < VISITS and count < room:
                visits += 1
                position, length = link // max_match, link % max_match + 1
                if length == match and position + 1 < stop and _agrees(text, position, output, emitted, match):
                    found += 1
                    count = _insert(text, position + 1, stop, False, room, tree, position_of, drafted[b], parents[b], count)
                link = np.int64(source_links[b, length - 1, position])
            link, found, visits = np.int64(heads[b, OUTPUT, bucket]), 0, 0
            while link >= 0 and found < CANDIDATES and visits < VISITS and count < room:
                visits += 1
                position, length = link // max_match, link % max_match + 1
                if position < oldest:
                    break
                if length == match and position < emitted and _agrees(output, position, output, emitted, match):
                    found += 1
                    count = _insert(output, position + 1, emitted + 1, False, room, tree, position_of, drafted[b],
                                    parents[b], count)
                link = np.int64(output_links[b, length - 1, position % WINDOW])
        for i in range(first, count):
            proposers[b, i] = proposer
        drafted[b, count:] = 0
        drafted_lengths[b] = count
