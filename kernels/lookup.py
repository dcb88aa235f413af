"""Drafts copied from the source or the output so far, on a device: one longest match a round, without an index.

    source [B', S] int64, source_lengths [B'] int64        the rows' source texts, B' >= B
    tokens [B, T + 1], lengths [B] int64, finished [B] bool, limits, widths [B] int64     the state
    proposed [B, K], proposed_lengths [B] int64            out: the draft, 0 past its end

A match ends at a position of the source, or of the output before its last id, and agrees with the output's last m ids,
min_match <= m <= max_match. The best one has, in this order, the largest m, the most ids to copy (up to those allowed),
stands in the output rather than in the source, and is the latest. The copy never runs past the end of its text, and never
takes the source's own end token. (The host's index, ngram_native/suffix.py, also begins at the source's first id and goes
on from place to place inside a draft.)

One program a row compares every position of both texts with the output's last ids. A match's rank is one int64: how long
it is, how many ids it leaves to copy, output before source, the latest position.
"""

from __future__ import annotations

from foredraft.kernels.backend import jit, power_of_2, tl
from foredraft.kernels.inputs import room

# Positions compared together.
BLOCK = 256


def lookup_reference(source: list[int], output: list[int], allowed: int, min_match: int, max_match: int, end_token: int,
                     window: int) -> list[int]:
    """The draft of one row; output: its ids without the start token, of which the last `window` can be copied from."""
    if source and source[-1] == end_token:
        source = source[:-1]
    best, draft = (0, 0, 0, 0), []
    for is_output, text in ((0, source), (1, output)):
        for j in range(max(0, len(text) - window) if is_output else 0, len(text) - 1):
            match = 0
            while match < min(max_match, j + 1, len(output)) and text[j - match] == output[-1 - match]:
                match += 1
            copied = text[j + 1 : j + 1 + allowed]
            rank = (match, len(copied), is_output, j)
            if match >= min_match and copied and rank > best:
                best, draft = rank, copied
    return draft


@jit
def _ranks(text, first, begin, end, stop, output, last, allowed, is_output, MIN_MATCH: tl.constexpr, MAX_MATCH: tl.constexpr,
           BLOCK: tl.constexpr):
    """The best rank among text positions begin .. end - 1; matches do not reach below `first`, copies not to `stop`."""
    best = tl.full((BLOCK,), -1, tl.int64)
    for start in range(begin, end, BLOCK):
        j = start + tl.arange(0, BLOCK)
        runs = j < end
        match = tl.zeros((BLOCK,), tl.int64)
        for m in tl.static_range(MAX_MATCH):
            reached = runs & (tl.minimum(j - first, last - 1) >= m)
            ours = tl.load(text + j - m, mask=reached, other=-1)
            runs = reached & (ours == tl.load(output + last - m, mask=last - m >= 1, other=-2))
            match += runs.to(tl.int64)
        copied = tl.minimum(allowed, stop - 1 - j)
        rank = (match << 48) | (copied << 32) | (is_output << 31) | j
        best = tl.maximum(best, tl.where((match >= MIN_MATCH) & (copied > 0), rank, -1))
    return tl.max(best, axis=0)


@jit
def _lookup_kernel(source, source_lengths, tokens, lengths, finished, limits, widths, proposed, proposed_lengths, end_token,
                   S, T1, K: tl.constexpr, K_PAD: tl.constexpr, WINDOW: tl.constexpr, MIN_MATCH: tl.constexpr,
                   MAX_MATCH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    allowed = tl.minimum(room(row, row >= 0, lengths, limits, finished, widths), K)
    last = tl.load(lengths + row) - 1
    text, output = source + row * S, tokens + row * T1
    stop = tl.load(source_lengths + row)
    # the source's own end is not for copying
    ended = tl.load(text + stop - 1, mask=stop > 0, other=0) == end_token
    stop = tl.where((stop > 0) & ended, stop - 1, stop)
    searched = allowed > 0
    oldest = tl.maximum(1, last - WINDOW + 1)
    best = tl.maximum(
        _ranks(text, 0, 0, tl.where(searched, stop - 1, 0), stop, output, last, allowed, 0, MIN_MATCH, MAX_MATCH, BLOCK),
        _ranks(output, 1, oldest, tl.where(searched, last, 0), last + 1, output, last, allowed, 1, MIN_MATCH, MAX_MATCH,
               BLOCK))
    count = tl.where(best >= 0, (best >> 32) & 0xFFFF, 0)
    after = (best & 0x7FFFFFFF) + 1
    is_output = (best >> 31) & 1
    k = tl.arange(0, K_PAD)
    copied = tl.load(text + after + k, mask=k < tl.where(is_output == 0, count, 0), other=0)
    copied += tl.load(output + after + k, mask=k < tl.where(is_output == 1, count, 0), other=0)
    tl.store(proposed + row * K + k, copied, mask=k < K)
    tl.store(proposed_lengths + row, count)


def lookup_triton(source, source_lengths, tokens, lengths, finished, limits, widths, end_token, window, min_match, max_match,
                  proposed, proposed_lengths) -> None:
    """window: how far back an output's positions are found (suffix.WINDOW). One launch, no wait."""
    B, K = proposed.shape
    _lookup_kernel[(B,)](
        source, source_lengths, tokens, lengths, finished, limits, widths, proposed, proposed_lengths, end_token,
        source.shape[1], tokens.shape[1], K=K, K_PAD=power_of_2(max(K, 1)), WINDOW=window, MIN_MATCH=min_match,
        MAX_MATCH=max_match, BLOCK=BLOCK, num_warps=4)
