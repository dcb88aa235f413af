"""Longest-suffix copying: what followed the last ids the previous time they were seen.

Contract of one proposal, for one row (ids are int64):

    source   [S]  the ids of the request's source text
    output   [n]  the ids emitted so far, without the start token
    allowed       the most ids that may be proposed
    -> ids [0..allowed]: the continuation of the best earlier occurrence of the output's suffix

An occurrence ends at a position j of the source or of the output (before its last id) and matches m ids backwards,
min_match <= m; m is counted up to max_match. The best one has, in this order, the longest match, the most ids to copy
(up to `allowed`), stands in the output rather than in the source, and is the latest. The order is measured on a trained
target's greedy summaries: a match a few ids back leaves little to copy, and an older one of equal length promises as
much. The continuation never runs past the end of its text, and never proposes the source's own end token: a summary
rarely ends where its article does.

`SuffixIndex` finds it without rescanning, by hash chains (as deflate does: Deutsch 1996, RFC 1951 section 4): every
position is filed once under the hash of its last min_match ids, newest first, and every candidate is compared id by id,
so that a collision costs time but never a false match.
"""

from __future__ import annotations

import numpy as np
from numba import njit

BUCKET_BITS = 12
BUCKETS = 1 << BUCKET_BITS  # per text and slot
WINDOW = 4096  # output positions that stay findable
OUTPUT, SOURCE = 0, 1


def propose_reference(
    source: list[int], output: list[int], allowed: int, min_match: int, max_match: int, end_token: int
) -> list[int]:
    """The contract by brute force, O((S + n) * max_match)."""
    if source and source[-1] == end_token:
        source = source[:-1]
    best, proposal = (0, 0, 0, 0), []
    for text, kind in ((source, SOURCE), (output, OUTPUT)):
        for j in range(len(text) - 1):
            match = 0
            while match < min(max_match, j + 1, len(output)) and text[j - match] == output[-1 - match]:
                match += 1
            copied = text[j + 1 : j + 1 + allowed]
            rank = (match, len(copied), 1 - kind, j)
            if match >= min_match and copied and rank > best:
                best, proposal = rank, copied
    return proposal


class SuffixIndex:
    """The index of every slot (batch row). Memory per slot: O(S + WINDOW + BUCKETS), whatever the number of requests.

    Arrays (n slots, grown by `admit` only): source [n, S] int64, source_lengths [n], heads [n, 2, BUCKETS] int32 the
    newest position of each hash (-1: none), source_links [n, S] and output_links [n, WINDOW] int32 the next older one,
    indexed [n] int64 the next output position to file.
    """

    def __init__(self, min_match: int, max_match: int):
        if not 1 <= min_match <= max_match:
            raise ValueError(f"need 1 <= min_match <= max_match, got {min_match} and {max_match}")
        self.min_match, self.max_match = min_match, max_match
        self.source = np.zeros((0, 0), np.int64)
        self.source_links = np.zeros((0, 0), np.int32)
        self.source_lengths = np.zeros(0, np.int64)
        self.heads = np.zeros((0, 2, BUCKETS), np.int32)
        self.output_links = np.zeros((0, WINDOW), np.int32)
        self.indexed = np.zeros(0, np.int64)

    def admit(self, slot: int, source: np.ndarray) -> None:
        """Start a request in `slot`: forget the old one, file `source` [S] int64."""
        self._grow(slot + 1, len(source))
        self.source[slot, : len(source)] = source
        self.source_lengths[slot] = len(source)
        self.indexed[slot] = 1
        _file_source(slot, self.min_match, self.source, self.source_lengths, self.heads, self.source_links)

    def release(self, slot: int) -> None:
        """Forget the slot's request; it then proposes nothing from a source."""
        if slot < len(self.indexed):
            self.admit(slot, np.zeros(0, np.int64))

    def propose(
        self, tokens: np.ndarray, lengths: np.ndarray, allowed: np.ndarray, end_token: int,
        proposed: np.ndarray, proposed_lengths: np.ndarray,
    ) -> None:
        """Propose for every row, in place.

        tokens [B, T + 1] int64 hold each row's start token and output, lengths [B] int64 count both, allowed [B] int64.
        Writes proposed [B, K] int64 (0 past a row's proposal) and proposed_lengths [B] int64.
        """
        _propose_loop(
            tokens, lengths, allowed, end_token, self.min_match, self.max_match, self.source, self.source_lengths,
            self.heads, self.source_links, self.output_links, self.indexed, proposed, proposed_lengths,
        )  # fmt: skip

    def _grow(self, slots: int, source: int) -> None:
        old_slots, old_source = self.source.shape
        if slots <= old_slots and source <= old_source:
            return
        slots = old_slots if slots <= old_slots else max(slots, 2 * old_slots)
        source = old_source if source <= old_source else max(source, 2 * old_source)
        self.source = _enlarged(self.source, (slots, source))
        self.source_links = _enlarged(self.source_links, (slots, source))
        self.source_lengths = _enlarged(self.source_lengths, (slots,))
        self.heads = _enlarged(self.heads, (slots, 2, BUCKETS))
        self.heads[old_slots:] = -1
        self.output_links = _enlarged(self.output_links, (slots, WINDOW))
        self.indexed = _enlarged(self.indexed, (slots,))
        self.indexed[old_slots:] = 1


def _enlarged(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    larger = np.zeros(shape, array.dtype)
    larger[tuple(slice(0, size) for size in array.shape)] = array
    return larger


@njit(cache=True, nogil=True)
def _bucket(text, last, count):
    """Hash of text[last - count + 1 : last + 1] (Fibonacci hashing, Knuth vol. 3, 6.4)."""
    value = np.uint64(0)
    for offset in range(count):
        value = (value ^ np.uint64(text[last - offset])) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(value >> np.uint64(64 - BUCKET_BITS))


@njit(cache=True, nogil=True)
def _file_source(slot, min_match, source, source_lengths, heads, source_links):
    heads[slot] = -1
    text = source[slot]
    for position in range(min_match - 1, source_lengths[slot] - 1):
        bucket = _bucket(text, position, min_match)
        source_links[slot, position] = heads[slot, SOURCE, bucket]
        heads[slot, SOURCE, bucket] = position


@njit(cache=True, nogil=True)
def _matched(text, position, first, output, last, most):
    """How many ids from text[position] down to text[first] equal those from output[last] down to output[1]."""
    match = 0
    while match < most and position - match >= first and last - match >= 1:
        if text[position - match] != output[last - match]:
            break
        match += 1
    return match


@njit(cache=True, nogil=True)
def _propose_loop(
    tokens, lengths, allowed, end_token, min_match, max_match, source, source_lengths,
    heads, source_links, output_links, indexed, proposed, proposed_lengths,
):  # fmt: skip
    for row in range(tokens.shape[0]):
        proposed[row] = 0
        proposed_lengths[row] = 0
        room = min(allowed[row], proposed.shape[1])
        if room <= 0 or row >= indexed.shape[0]:
            continue
        output, last = tokens[row], lengths[row] - 1
        for position in range(max(indexed[row], min_match), last):
            bucket = _bucket(output, position, min_match)
            output_links[row, position % WINDOW] = heads[row, OUTPUT, bucket]
            heads[row, OUTPUT, bucket] = position
        indexed[row] = max(indexed[row], last)
        if last < min_match:
            continue

        bucket = _bucket(output, last, min_match)
        text, stop = source[row], source_lengths[row]
        if stop > 0 and text[stop - 1] == end_token:
            stop -= 1
        best_match, best_copied, best_kind, best_position = min_match - 1, 0, OUTPUT, 0
        # A link may be overwritten once its position has left the window, so the walk ends before it.
        oldest = max(1, last - WINDOW + 1)
        position = heads[row, OUTPUT, bucket]
        while position >= oldest:
            match = _matched(output, position, 1, output, last, max_match)
            copied = min(room, last - position)
            if match > best_match or (match == best_match and copied > best_copied and match >= min_match):
                best_match, best_copied, best_kind, best_position = match, copied, OUTPUT, position
                if match == max_match and copied == room:
                    break
            position = output_links[row, position % WINDOW]
        if best_match < max_match or best_copied < room:
            position = heads[row, SOURCE, bucket]
            while position >= 0:
                match = _matched(text, position, 0, output, last, max_match)
                copied = min(room, stop - 1 - position)
                if copied > 0 and match >= min_match:
                    if match > best_match or (match == best_match and copied > best_copied):
                        best_match, best_copied, best_kind, best_position = match, copied, SOURCE, position
                        if match == max_match and copied == room:
                            break
                position = source_links[row, position]
        if best_match >= min_match:
            for offset in range(best_copied):
                if best_kind == SOURCE:
                    proposed[row, offset] = text[best_position + 1 + offset]
                else:
                    proposed[row, offset] = output[best_position + 1 + offset]
            proposed_lengths[row] = best_copied
