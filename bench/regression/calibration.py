"""The speed of this machine now, by work that is not foredraft's: the unit of the regression alarm."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from foredraft.bench.harness.interleave import best_of

# 32 MB beyond the inner caches, arithmetic inside them, and interpreted code; one thread, because a pool would wait for
# other processes
FAR, NEAR, LOOPS = 8_000_000, 50_000, 20_000


@lru_cache(maxsize=1)
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    return np.ones(FAR, np.float32), np.ones(NEAR, np.float32)


def work() -> float:
    """A sum over a large array, functions of a small one, a loop of the interpreter."""
    far, near = _arrays()
    total = float(far.sum() + np.exp(near).sum())
    for number in range(LOOPS):
        total += number
    return total


def calibrate(times: int = 30) -> float:
    """Seconds of the fastest of `times` calls."""
    return best_of(work, times)
