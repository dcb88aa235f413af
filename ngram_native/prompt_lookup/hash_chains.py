"""Hash chains: where the last ids of a text were seen before.

Every place of a text is filed under the hashes of its last 1..max_match ids, as deflate does (Deutsch 1996, RFC 1951
section 4), and what a chain offers is compared id by id, so that a collision costs time but never a false match. A step
costs O(max_match) whatever the length of the texts.

Measured against a suffix automaton (Blumer et al. 1985) over the same texts, summaries of articles cut at 256 ids: filing a
source took 4 us, building the automaton 27 us, and drafts from the longest match at its first place gave as many tokens a
round (4.70 of both on greedy summaries, 1.25 on drawn ones). Of the 2.8 us of a round here 2.3 are the call.
"""

from __future__ import annotations

import numpy as np
from numba import njit

BUCKET_BITS = 13
BUCKETS = 1 << BUCKET_BITS  # per text and slot
WINDOW = 4096  # output positions that stay findable
CANDIDATES = 16
VISITS = 64  # links followed in one chain, collisions included
OUTPUT, SOURCE, HISTORY = 0, 1, 2


@njit(cache=True, nogil=True)
def _hash(text, last, count):
    """Hash of text[last - count + 1 : last + 1] and of its length (Fibonacci hashing, Knuth vol. 3, 6.4)."""
    value = np.uint64(count)
    for offset in range(count):
        value = (value ^ np.uint64(text[last - offset])) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(32)
    return value


@njit(cache=True, nogil=True)
def _bucket(text, last, count):
    return np.int64(_hash(text, last, count) >> np.uint64(32)) & (BUCKETS - 1)


@njit(cache=True, nogil=True)
def file_source(slot, max_match, source, source_lengths, heads, source_links):
    """From the end, so that a chain begins with the earliest position."""
    heads[slot] = -1
    text = source[slot]
    for position in range(source_lengths[slot] - 2, -1, -1):
        for match in range(1, min(max_match, position + 1) + 1):
            bucket = _bucket(text, position, match)
            source_links[slot, match - 1, position] = heads[slot, SOURCE, bucket]
            heads[slot, SOURCE, bucket] = position * max_match + match - 1


@njit(cache=True, nogil=True)
def file_output(row, max_match, text, begin, end, heads, output_links):
    """File the places begin..end - 1 of a row's output, the latest first in its chain; place 0 is the start token."""
    for position in range(begin, end):
        for match in range(1, min(max_match, position) + 1):
            bucket = _bucket(text, position, match)
            output_links[row, match - 1, position % WINDOW] = heads[row, OUTPUT, bucket]
            heads[row, OUTPUT, bucket] = position * max_match + match - 1


@njit(cache=True, nogil=True)
def remember(output, max_match, history, links, heads, remembered):
    H = len(history)
    begin = remembered[0]
    for token in output:
        position = remembered[0]
        history[position % H] = token
        remembered[0] = position + 1
        value = np.uint64(0)
        for match in range(1, min(max_match, position - begin + 1) + 1):
            value = np.uint64(match)
            for offset in range(match):
                value = (value ^ np.uint64(history[(position - offset) % H])) * np.uint64(0x9E3779B97F4A7C15)
                value ^= value >> np.uint64(32)
            bucket = np.int64(value >> np.uint64(1)) % len(heads)
            links[match - 1, position % H] = heads[bucket]
            heads[bucket] = position * max_match + match - 1


@njit(cache=True, nogil=True)
def _agrees(text, position, output, last, match):
    for offset in range(match):
        if text[position - offset] != output[last - offset]:
            return False
    return True


@njit(cache=True, nogil=True)
def find(row, output, emitted, last, room, min_match, max_match, text, stop, heads, source_links, output_links, history,
          history_links, history_heads, remembered, favourite):
    """(kind, next position to copy, match) of the best place after output[1 : last + 1]; match 0: none.

    Links hold position * max_match + match - 1, and each leads on in the chain of its own match.
    """
    H = len(history)
    for match in range(min(max_match, last), min_match - 1, -1):
        best_kind, best_position, best_copied, best_favours = OUTPUT, 0, 0, False
        bucket = _bucket(output, last, match)
        # the source comes first: it wins ties
        link, found, visits = np.int64(heads[row, SOURCE, bucket]), 0, 0
        while link >= 0 and found < CANDIDATES and visits < VISITS:
            visits += 1
            position, length = link // max_match, link % max_match + 1
            if length == match and position + 1 < stop and _agrees(text, position, output, last, match):
                found += 1
                copied, favours = min(room, stop - 1 - position), text[position + 1] == favourite
                if copied > best_copied or (copied == best_copied and favours and not best_favours):
                    best_kind, best_position, best_copied, best_favours = SOURCE, position + 1, copied, favours
            link = np.int64(source_links[row, length - 1, position])
        link, found, visits = np.int64(heads[row, OUTPUT, bucket]), 0, 0
        # A link may be overwritten once its position has left the window, so the walk ends before it.
        oldest = max(1, emitted - WINDOW + 1)
        while link >= 0 and found < CANDIDATES and visits < VISITS:
            visits += 1
            position, length = link // max_match, link % max_match + 1
            if position < oldest:
                break
            # an output may have been taken back (engine/drafters/staged.py): what lay past its end is no longer there
            if length == match and position < emitted and _agrees(output, position, output, last, match):
                found += 1
                copied, favours = min(room, emitted - position), output[position + 1] == favourite
                if copied > best_copied or (copied == best_copied and favours and not best_favours):
                    best_kind, best_position, best_copied, best_favours = OUTPUT, position + 1, copied, favours
            link = np.int64(output_links[row, length - 1, position % WINDOW])
        if H:
            bucket = np.int64(_hash(output, last, match) >> np.uint64(1)) % len(history_heads)
            link, found, visits = history_heads[bucket], 0, 0
            while link >= 0 and found < CANDIDATES and visits < VISITS:
                visits += 1
                position, length = link // max_match, link % max_match + 1
                if position - match < remembered - H:
                    break
                if length == match and position + 1 < remembered:
                    same = True
                    for offset in range(match):
                        same &= history[(position - offset) % H] == output[last - offset]
                    if same:
                        found += 1
                        copied, favours = min(room, remembered - 1 - position), history[(position + 1) % H] == favourite
                        if copied > best_copied or (copied == best_copied and favours and not best_favours):
                            best_kind, best_position, best_copied, best_favours = HISTORY, position + 1, copied, favours
                link = history_links[length - 1, position % H]
        if best_copied > 0:
            return best_kind, best_position, match
    return OUTPUT, np.int64(0), 0
