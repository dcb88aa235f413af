"""Hash chains that find earlier occurrences of the last tokens of a text.

Every position of a text is entered in chains under the hashes of its last 1..max_match tokens, as in deflate (Deutsch 1996,
RFC 1951, section 4). Candidates of a chain are compared token by token, so a hash collision costs time but never yields a
false match. A step costs O(max_match), whatever the length of the texts.

A suffix automaton (Blumer et al. 1985) over summaries and articles of 256 tokens drafted as many tokens a step and took
seven times as long to build.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit

BUCKET_BITS = 13
BUCKETS = 1 << BUCKET_BITS  # for each text of a slot
WINDOW = 4096  # the last positions of an output that can be found
CANDIDATES = 16  # matches that are compared in one chain
VISITS = 64  # links that are followed in one chain, with collisions
OUTPUT, SOURCE, HISTORY = 0, 1, 2


@njit()
def _hash(text, last, count):
    """Hash of text[last - count + 1 : last + 1] and of its length (Fibonacci hashing; Knuth, vol. 3, section 6.4)."""
    value = np.uint64(count)
    for offset in range(count):
        value = (value ^ np.uint64(text[last - offset])) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(32)
    return value


@njit()
def _bucket(text, last, count):
    return np.int64(_hash(text, last, count) >> np.uint64(32)) & (BUCKETS - 1)


@njit()
def index_source(slot, max_match, source, source_lengths, heads, source_links):
    """Enter a slot's source from its end, so that every chain begins with the earliest position."""
    heads[slot] = -1
    text = source[slot]
    for position in range(source_lengths[slot] - 2, -1, -1):
        for match in range(1, min(max_match, position + 1) + 1):
            bucket = _bucket(text, position, match)
            source_links[slot, match - 1, position] = heads[slot, SOURCE, bucket]
            heads[slot, SOURCE, bucket] = position * max_match + match - 1


@njit()
def index_output(b, max_match, text, begin, end, heads, output_links):
    """Enter positions begin..end - 1 of a sequence's output; chains begin with the latest. Position 0 is the start token."""
    for position in range(begin, end):
        for match in range(1, min(max_match, position) + 1):
            bucket = _bucket(text, position, match)
            output_links[b, match - 1, position % WINDOW] = heads[b, OUTPUT, bucket]
            heads[b, OUTPUT, bucket] = position * max_match + match - 1


@njit()
def add_to_history(output, max_match, history, links, heads, count):
    """Append an output to the ring buffer `history` and to its chains; count [1] is the number of tokens ever added."""
    H = len(history)
    begin = count[0]
    for token in output:
        position = count[0]
        history[position % H] = token
        count[0] = position + 1
        value = np.uint64(0)
        for match in range(1, min(max_match, position - begin + 1) + 1):
            value = np.uint64(match)
            for offset in range(match):
                value = (value ^ np.uint64(history[(position - offset) % H])) * np.uint64(0x9E3779B97F4A7C15)
                value ^= value >> np.uint64(32)
            bucket = np.int64(value >> np.uint64(1)) % len(heads)
            links[match - 1, position % H] = heads[bucket]
            heads[bucket] = position * max_match + match - 1


@njit()
def _agrees(text, position, output, last, match):
    for offset in range(match):
        if text[position - offset] != output[last - offset]:
            return False
    return True


@njit()
def find_copy(b, output, emitted, last, room, min_match, max_match, text, stop, heads, source_links, output_links,
              history, history_links, history_heads, history_count, preferred):
    """(text, next position to copy, match length) of the best copy after output[1 : last + 1]; match length 0: none.

    A link is position * max_match + match - 1; it continues in the chain of its own match length. `preferred` is the token
    that the table predicts; a match that it follows is a hit.
    """
    H = len(history)
    for match in range(min(max_match, last), min_match - 1, -1):
        best_kind, best_position, best_copied, best_hit = OUTPUT, 0, 0, False
        bucket = _bucket(output, last, match)
        # the source first, because it wins ties
        link, found, visits = np.int64(heads[b, SOURCE, bucket]), 0, 0
        while link >= 0 and found < CANDIDATES and visits < VISITS:
            visits += 1
            position, length = link // max_match, link % max_match + 1
            if length == match and position + 1 < stop and _agrees(text, position, output, last, match):
                found += 1
                copied, hit = min(room, stop - 1 - position), text[position + 1] == preferred
                if copied > best_copied or (copied == best_copied and hit and not best_hit):
                    best_kind, best_position, best_copied, best_hit = SOURCE, position + 1, copied, hit
            link = np.int64(source_links[b, length - 1, position])
        link, found, visits = np.int64(heads[b, OUTPUT, bucket]), 0, 0
        # links of positions before the window may have been overwritten
        oldest = max(1, emitted - WINDOW + 1)
        while link >= 0 and found < CANDIDATES and visits < VISITS:
            visits += 1
            position, length = link // max_match, link % max_match + 1
            if position < oldest:
                break
            # the output may have been rolled back (engine/drafters/staged.py), so entries past its end are ignored
            if length == match and position < emitted and _agrees(output, position, output, last, match):
                found += 1
                copied, hit = min(room, emitted - position), output[position + 1] == preferred
                if copied > best_copied or (copied == best_copied and hit and not best_hit):
                    best_kind, best_position, best_copied, best_hit = OUTPUT, position + 1, copied, hit
            link = np.int64(output_links[b, length - 1, position % WINDOW])
        if H:
            bucket = np.int64(_hash(output, last, match) >> np.uint64(1)) % len(history_heads)
            link, found, visits = history_heads[bucket], 0, 0
            while link >= 0 and found < CANDIDATES and visits < VISITS:
                visits += 1
                position, length = link // max_match, link % max_match + 1
                if position - match < history_count - H:
                    break
                if length == match and position + 1 < history_count:
                    same = True
                    for offset in range(match):
                        same &= history[(position - offset) % H] == output[last - offset]
                    if same:
                        found += 1
                        copied, hit = min(room, history_count - 1 - position), history[(position + 1) % H] == preferred
                        if copied > best_copied or (copied == best_copied and hit and not best_hit):
                            best_kind, best_position, best_copied, best_hit = HISTORY, position + 1, copied, hit
                link = history_links[length - 1, position % H]
        if best_copied > 0:
            return best_kind, best_position, match
    return OUTPUT, np.int64(0), 0
