"""Verify greedy drafts as Big Little Decoder does (Kim et al. 2023, section 3.3, rollback policy). LOSSY.

    logits         [B, R, V] float32   the target's, row 0 after the last committed token, row i + 1 after draft i
    draft_tokens   [B, K] int64        draft_lengths [B] int64 in 0..K; chains of point masses
    threshold      float >= 0          the paper's alpha_RB, in nats
    tokens         [B, R] int64        out: what to emit;  counts [B] int64: how many, 1..R

A draft stands while its distance, the cross-entropy of its id as a hard label under the target, -log p(x), is at most the
threshold; at the first that is further off the target's own choice takes its place, and after a draft that stands whole it
follows. The target's own choice always stands, however unsure it is, as in the authors' code: with threshold 0 what is
emitted is plain decoding's, with infinity all that was drafted stands.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.argmax import argmax_loop
from foredraft.kernels.core.backend import njit, prange
from foredraft.kernels.core.sum_of_exp import sum_of_exp_loop


def rollback_reference(logits, draft_tokens, draft_lengths, threshold, tokens, counts) -> None:
    for b in range(len(logits)):
        for row in range(int(draft_lengths[b]) + 1):
            scores = logits[b, row].astype(np.float64)
            chosen = int(np.argmax(logits[b, row]))
            tokens[b, row], counts[b] = chosen, row + 1
            if row == draft_lengths[b]:
                break
            drafted = int(draft_tokens[b, row])
            distance = float(scores.max() + np.log(np.exp(scores - scores.max()).sum()) - scores[drafted])
            if drafted != chosen and not distance <= threshold:
                break
            tokens[b, row] = drafted


@njit(parallel=True)
def _rollback_loop(logits, draft_tokens, draft_lengths, threshold, tokens, counts):
    for b in prange(logits.shape[0]):
        row, stands = 0, True
        while stands:
            token = argmax_loop(logits[b, row])
            stands = row < draft_lengths[b]
            if stands and draft_tokens[b, row] != token:
                apart = np.float64(logits[b, row, token]) - np.float64(logits[b, row, draft_tokens[b, row]])
                stands = apart + np.log(sum_of_exp_loop(logits[b, row])) <= threshold
                if stands:
                    token = draft_tokens[b, row]
            tokens[b, row] = token
            row += 1
        counts[b] = row


def rollback_numba(logits, draft_tokens, draft_lengths, threshold, tokens, counts) -> None:
    _rollback_loop(logits, draft_tokens, draft_lengths, threshold, tokens, counts)


ROLLBACK = {"reference": rollback_reference, "numba": rollback_numba}
