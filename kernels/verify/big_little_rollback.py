"""Verify greedy drafts by the rollback policy of Big Little Decoder (Kim et al. 2023, section 3.3). LOSSY.

    logits         [B, R, V] float32   the target's, query position 0 after the last committed token, i + 1 after draft i
    draft_tokens   [B, K] int64        draft_lengths [B] int64 in 0..K; point masses without branches
    threshold      float >= 0          the paper's alpha_RB, in nats
    tokens         [B, R] int64        out: emitted tokens;  counts [B] int64: how many, 1..R

The distance of a draft is -log p(x), the cross-entropy of its token under the target. A draft is accepted while its
distance is at most the threshold; the target's argmax is always accepted, as in the authors' code. The first rejected draft
is replaced by the target's argmax, and a fully accepted draft is followed by it. Threshold 0 emits what plain decoding
emits; an infinite threshold accepts every draft.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.sum_of_exp import sum_of_exp_loop
from foredraft.kernels.core.workers import get_num_threads, parallel


def rollback_reference(logits, draft_tokens, draft_lengths, threshold, tokens, counts) -> None:
    for b in range(len(logits)):
        for r in range(int(draft_lengths[b]) + 1):
            scores = logits[b, r].astype(np.float64)
            chosen = int(np.argmax(logits[b, r]))
            tokens[b, r], counts[b] = chosen, r + 1
            if r == draft_lengths[b]:
                break
            drafted = int(draft_tokens[b, r])
            distance = float(scores.max() + np.log(np.exp(scores - scores.max()).sum()) - scores[drafted])
            if drafted != chosen and not distance <= threshold:
                break
            tokens[b, r] = drafted


@parallel
@njit()
def _rollback_sequences(first, last, logits, draft_tokens, draft_lengths, threshold, tokens, counts):
    for b in range(first, last):
        r, accepted = 0, True
        while accepted:
            token = argmax_loop(logits[b, r])
            accepted = r < draft_lengths[b]
            if accepted and draft_tokens[b, r] != token:
                gap = np.float64(logits[b, r, token]) - np.float64(logits[b, r, draft_tokens[b, r]])
                accepted = gap + np.log(sum_of_exp_loop(logits[b, r])) <= threshold
                if accepted:
                    token = draft_tokens[b, r]
            tokens[b, r] = token
            r += 1
        counts[b] = r


@njit()
def _rollback_loop(threads, *arguments):
    _rollback_sequences(arguments[0].shape[0], threads, *arguments)


def rollback_numba(logits, draft_tokens, draft_lengths, threshold, tokens, counts) -> None:
    _rollback_loop(get_num_threads(), logits, draft_tokens, draft_lengths, threshold, tokens, counts)


ROLLBACK = {"reference": rollback_reference, "numba": rollback_numba}
