"""How fast this machine is right now, by work that is none of ours: the unit in which regressions are told."""

from __future__ import annotations

import time
from functools import lru_cache

import numpy as np

# 32 MB past the inner caches, arithmetic that stays inside them, and plain interpretation; one thread, for a pool of them
# would wait for whoever else is at work
FAR, NEAR, TURNS = 8_000_000, 50_000, 20_000


@lru_cache(maxsize=1)
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    return np.ones(FAR, np.float32), np.ones(NEAR, np.float32)


def work() -> float:
    """One turn: a sum over a large array, functions of a small one, a loop of the interpreter."""
    far, near = _arrays()
    total = float(far.sum() + np.exp(near).sum())
    for turn in range(TURNS):
        total += turn
    return total


def calibrate(times: int = 30) -> float:
    """Seconds of the fastest of `times` turns: what else ran meanwhile only ever adds."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
