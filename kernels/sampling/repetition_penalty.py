"""Make tokens that have occurred less likely (Keskar et al. 2019, eq. 2), with transformers' treatment of negative scores.

    tokens   [N] int64      the tokens that have occurred; repeated ones count once
    penalty  float > 0      above 1: less likely
    scores   [V] float32    in place: a score s of one of the tokens becomes s * penalty if s < 0, else s / penalty
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit


def repetition_penalty_reference(tokens, penalty, scores) -> None:
    penalty = np.float32(penalty)
    for token in set(tokens.tolist()):
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty


@njit()
def repetition_penalty_numba(tokens, penalty, scores):
    factor = np.float32(penalty)
    before = np.empty(tokens.shape[0], np.float32)
    for i in range(tokens.shape[0]):
        before[i] = scores[tokens[i]]
    for i in range(tokens.shape[0]):
        scores[tokens[i]] = before[i] * factor if before[i] < np.float32(0) else before[i] / factor


REPETITION_PENALTY = {"reference": repetition_penalty_reference, "numba": repetition_penalty_numba}
