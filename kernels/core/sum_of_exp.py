"""The sum of exponentials relative to the largest value: the denominator of a softmax.

    scores  [n] float32, n >= 1, without NaN
    -> float64, sum over j of e^(scores[j] - max(scores))
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.argmax import largest_loop
from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.exp import exp32


def sum_of_exp_reference(scores: np.ndarray) -> float:
    known = scores.astype(np.float64)
    return float(np.exp(known - known.max()).sum())


@njit(fastmath={"reassoc", "contract"})
def sum_of_exp_loop(scores):
    largest, total = largest_loop(scores), 0.0
    for j in range(scores.shape[0]):
        total += np.float64(exp32(scores[j] - largest))
    return total
