"""Log-probabilities in place of logits.

    scores  [V] float32    in place: score - log sum of e^score
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.argmax import largest_loop
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.sum_of_exp import sum_of_exp_loop


def log_softmax_reference(scores) -> None:
    known = scores.astype(np.float64)
    scores[:] = known - known.max() - np.log(np.exp(known - known.max()).sum())


@njit()
def log_softmax_numba(scores):
    shift = np.float32(np.float64(largest_loop(scores)) + np.log(sum_of_exp_loop(scores)))
    for i in range(scores.shape[0]):
        scores[i] -= shift


LOG_SOFTMAX = {"reference": log_softmax_reference, "numba": log_softmax_numba}
