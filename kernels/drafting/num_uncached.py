"""How many committed tokens a drafter that caches its states by position has not read yet.

    tokens          [B, T'] int64    committed tokens;  lengths [B] int64: how many
    cached_tokens   [B, T] int64     the token that the drafter read at each position, rejected drafts included
    counts          [B] int64        positions that the drafter has read
    num_uncached    [B] int64        out: number of last committed tokens that must be read, at least 1

A cached state is valid if its token and all tokens before it are the committed ones.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import HAS_NUMBA, njit


def num_uncached_reference(tokens, lengths, cached_tokens, counts, num_uncached) -> None:
    for b, length in enumerate(lengths):
        most = min(counts[b], length - 1)
        differing = np.flatnonzero(cached_tokens[b, :most] != tokens[b, :most])
        num_uncached[b] = length - (differing[0] if len(differing) else most)


@njit()
def num_uncached_loop(tokens, lengths, cached_tokens, counts, num_uncached):
    for b in range(lengths.shape[0]):
        most = min(counts[b], lengths[b] - 1)
        t = 0
        while t < most and cached_tokens[b, t] == tokens[b, t]:
            t += 1
        num_uncached[b] = lengths[b] - t


def num_uncached_numba(tokens, lengths, cached_tokens, counts, num_uncached) -> None:
    num_uncached_loop(tokens, lengths, cached_tokens, counts, num_uncached)


NUM_UNCACHED = {"reference": num_uncached_reference, "numba": num_uncached_numba}
BACKEND = "numba" if HAS_NUMBA else "reference"
