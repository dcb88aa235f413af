"""Which committed ids a drafter that keeps its state by position has not read yet.

    tokens          [B, T'] int64    committed ids;  lengths [B] int64 how many
    fed             [B, T] int64     ids the drafter read at each position, its own rejected drafts among them
    counts          [B] int64        how many
    unread          [B] int64        out: the last so many committed ids are to be read; the last one always is

What was read at a position still stands if it and all before it are what was committed.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import HAS_NUMBA, njit


def num_uncached_reference(tokens, lengths, fed, counts, unread) -> None:
    for b, length in enumerate(lengths):
        most = min(counts[b], length - 1)
        differing = np.flatnonzero(fed[b, :most] != tokens[b, :most])
        unread[b] = length - (differing[0] if len(differing) else most)


@njit()
def num_uncached_loop(tokens, lengths, fed, counts, unread):
    for b in range(lengths.shape[0]):
        most = min(counts[b], lengths[b] - 1)
        t = 0
        while t < most and fed[b, t] == tokens[b, t]:
            t += 1
        unread[b] = lengths[b] - t


def num_uncached_numba(tokens, lengths, fed, counts, unread) -> None:
    num_uncached_loop(tokens, lengths, fed, counts, unread)


NUM_UNCACHED = {"reference": num_uncached_reference, "numba": num_uncached_numba}
BACKEND = "numba" if HAS_NUMBA else "reference"
