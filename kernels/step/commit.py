"""Commit a verification: append the emitted tokens to each sequence, stop at the end token or the length limit, and count.

A verification emits, for each sequence, its accepted drafts and one token of the target. `path` lists the query positions
that the accepted drafts passed through, position 0 (the last committed token) first; for a draft without branches it is
0, 1, 2, ...

    read     verified_tokens [B, R], verified_counts [B], path [B, R] int64    as verify/accept.py writes them
             draft_lengths [B], parents [B, K] int64                           the verified draft; without branches, parents
                                                                              are 0, 1, 2, ...
             draft_proposers [B, K] uint8                                      which drafter proposed each token
             target_hidden [B, R, C] float32                                   the target's decoder output of this step
             limits [B] int64                                                  largest length of each sequence
             end_tokens [B, MAX_END_TOKENS] int64                              tokens that end it; -1 in unused columns
    written  tokens [B, T + 1] int64, proposer [B, T + 1] uint8, lengths [B] int64, finished [B] bool
             hidden [B, C] float32                                             target_hidden that gave the last token
             num_steps, covered, drafted [B] int64                             totals: steps, steps with drafts, drafts
             tested_at, accepted_at [B, K] int64                               totals for each offset in the draft
             last_counts, last_tested, last_accepted [B] int64                 emitted, tested, accepted tokens of this step

Finished sequences emit and count nothing. Drafts are tested up to the first rejected one and never beyond the emitted
tokens. In a tree each depth counts as one test; the depth below the last accepted node counts if the node has children.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.rows import copy_row


def commit_reference(verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, target_hidden, limits,
                     end_tokens, tokens, proposer, lengths, finished, hidden, num_steps, covered, drafted, tested_at,
                     accepted_at, last_counts, last_tested, last_accepted) -> None:
    for b in range(len(lengths)):
        last_counts[b] = last_tested[b] = last_accepted[b] = 0
        if finished[b]:
            continue
        emitted = verified_tokens[b, : min(verified_counts[b], limits[b] - lengths[b])].tolist()
        ends = [i + 1 for i, token in enumerate(emitted) if token in end_tokens[b]]
        emitted = emitted[: min(ends, default=len(emitted))]
        n, accepted = len(emitted), int(verified_counts[b]) - 1
        proposers = [draft_proposers[b, path[b, i + 1] - 1] if i < accepted else 0 for i in range(n)]
        tokens[b, lengths[b] : lengths[b] + n] = emitted
        proposer[b, lengths[b] : lengths[b] + n] = proposers
        hidden[b] = target_hidden[b, path[b, n - 1]]
        last_counts[b], last_accepted[b] = n, min(accepted, n)
        has_children = (parents[b, : draft_lengths[b]] == path[b, accepted]).any()
        last_tested[b] = min(accepted + has_children, n)
        tested_at[b, : last_tested[b]] += 1
        accepted_at[b, : last_accepted[b]] += 1
        num_steps[b] += 1
        covered[b] += draft_lengths[b] > 0
        drafted[b] += draft_lengths[b]
        lengths[b] += n
        finished[b] = bool(ends) or lengths[b] >= limits[b]


@njit()
def _commit_loop(verified_tokens, verified_counts, path, draft_lengths, parents, draft_proposers, target_hidden, limits,
                 end_tokens, tokens, proposer, lengths, finished, hidden, num_steps, covered, drafted, tested_at,
                 accepted_at, last_counts, last_tested, last_accepted):
    for b in range(lengths.shape[0]):
        last_counts[b] = last_tested[b] = last_accepted[b] = 0
        if finished[b]:
            continue
        accepted = verified_counts[b] - 1
        most = min(verified_counts[b], limits[b] - lengths[b])
        n = 0
        ended = False
        while n < most and not ended:
            token = verified_tokens[b, n]
            tokens[b, lengths[b] + n] = token
            proposer[b, lengths[b] + n] = draft_proposers[b, path[b, n + 1] - 1] if n < accepted else np.uint8(0)
            for i in range(end_tokens.shape[1]):
                ended = ended or token == end_tokens[b, i]
            n += 1
        copy_row(target_hidden[b, path[b, n - 1]], hidden[b])
        last_counts[b], last_accepted[b] = n, min(accepted, n)
        tested = accepted
        for i in range(draft_lengths[b]):
            if parents[b, i] == path[b, accepted]:
                tested = accepted + 1
        last_tested[b] = min(tested, n)
        for i in range(last_tested[b]):
            tested_at[b, i] += 1
        for i in range(last_accepted[b]):
            accepted_at[b, i] += 1
        num_steps[b] += 1
        covered[b] += 1 if draft_lengths[b] > 0 else 0
        drafted[b] += draft_lengths[b]
        lengths[b] += n
        finished[b] = ended or lengths[b] >= limits[b]


def commit_numba(*arguments) -> None:
    _commit_loop(*arguments)


COMMIT = {"reference": commit_reference, "numba": commit_numba}
