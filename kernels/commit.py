"""Commit verdicts: append what each row emits, cut at the end token and at the row's limit, and count.

    read     verdict_tokens [B, R], verdict_counts [B], path [B, R] int64    as accept.py writes them; a chain's path is
                                                                              0, 1, 2, ...
             draft_lengths [B] int64, draft_origin [B, K] uint8               the draft that was judged
             produced [B, R, C] float32                                       the target's output of this round
             limits [B] int64, end_token int
    written  tokens [B, T + 1] int64, origin [B, T + 1] uint8, lengths [B] int64, finished [B] bool, hidden [B, C] float32
             rounds, covered, drafted [B], tested_at, accepted_at [B, K] int64                      sums
             last_counts, last_tested, last_accepted [B] int64                                      of this round

Finished rows emit and count nothing. A draft counts as tested up to the first rejection and never past what was emitted.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.backend import HAS_NUMBA, njit


def commit_reference(verdict_tokens, verdict_counts, path, draft_lengths, draft_origin, produced, limits, end_token, tokens,
                     origin, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at, last_counts,
                     last_tested, last_accepted) -> None:
    for b in range(len(lengths)):
        last_counts[b] = last_tested[b] = last_accepted[b] = 0
        if finished[b]:
            continue
        emitted = verdict_tokens[b, : min(verdict_counts[b], limits[b] - lengths[b])].tolist()
        if end_token in emitted:
            emitted = emitted[: emitted.index(end_token) + 1]
        n, drafts = len(emitted), int(verdict_counts[b]) - 1
        proposers = [draft_origin[b, path[b, i + 1] - 1] if i < drafts else 0 for i in range(n)]
        tokens[b, lengths[b] : lengths[b] + n] = emitted
        origin[b, lengths[b] : lengths[b] + n] = proposers
        hidden[b] = produced[b, path[b, n - 1]]
        last_counts[b], last_accepted[b] = n, min(drafts, n)
        last_tested[b] = min(draft_lengths[b], drafts + 1, n)
        tested_at[b, : last_tested[b]] += 1
        accepted_at[b, : last_accepted[b]] += 1
        rounds[b] += 1
        covered[b] += draft_lengths[b] > 0
        drafted[b] += draft_lengths[b]
        lengths[b] += n
        finished[b] = emitted[-1] == end_token or lengths[b] >= limits[b]


@njit()
def _commit_loop(verdict_tokens, verdict_counts, path, draft_lengths, draft_origin, produced, limits, end_token, tokens,
                 origin, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at, last_counts,
                 last_tested, last_accepted):
    for b in range(lengths.shape[0]):
        last_counts[b] = last_tested[b] = last_accepted[b] = 0
        if finished[b]:
            continue
        drafts = verdict_counts[b] - 1
        most = min(verdict_counts[b], limits[b] - lengths[b])
        n = 0
        ended = False
        while n < most and not ended:
            token = verdict_tokens[b, n]
            tokens[b, lengths[b] + n] = token
            origin[b, lengths[b] + n] = draft_origin[b, path[b, n + 1] - 1] if n < drafts else np.uint8(0)
            ended = token == end_token
            n += 1
        hidden[b] = produced[b, path[b, n - 1]]
        last_counts[b], last_accepted[b] = n, min(drafts, n)
        last_tested[b] = min(draft_lengths[b], min(drafts + 1, n))
        for i in range(last_tested[b]):
            tested_at[b, i] += 1
        for i in range(last_accepted[b]):
            accepted_at[b, i] += 1
        rounds[b] += 1
        covered[b] += 1 if draft_lengths[b] > 0 else 0
        drafted[b] += draft_lengths[b]
        lengths[b] += n
        finished[b] = ended or lengths[b] >= limits[b]


def commit_numba(verdict_tokens, verdict_counts, path, draft_lengths, draft_origin, produced, limits, end_token, tokens,
                 origin, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at, last_counts,
                 last_tested, last_accepted) -> None:
    _commit_loop(verdict_tokens, verdict_counts, path, draft_lengths, draft_origin, produced, limits, end_token, tokens,
                 origin, lengths, finished, hidden, rounds, covered, drafted, tested_at, accepted_at, last_counts,
                 last_tested, last_accepted)


COMMIT = {"reference": commit_reference, "numba": commit_numba}
BACKEND = "numba" if HAS_NUMBA else "reference"
