"""The pytest-benchmark fixture of these cases: each case runs between two calibrations of the machine.

FOREDRAFT_BENCH_SLOW=1.5 makes every case take 1.5 times as long, to test `foredraft bench compare`.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache

import numpy as np
import pytest

from foredraft.bench.harness.interleave import best_of
from foredraft.bench.regression.compare_runs import CALIBRATION

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


def calibrate() -> float:
    """Seconds of work that is not foredraft's: the speed of this machine now, the unit of the regression alarm."""
    return best_of(work, 30)


@pytest.fixture
def benchmark(benchmark):
    if not benchmark.enabled:
        yield benchmark
        return
    kind, times = type(benchmark), float(os.environ.get("FOREDRAFT_BENCH_SLOW", "1"))

    def measured(self, function, *args, **named):
        # a warm-up call: after a cold one pytest-benchmark would choose too few rounds
        function(*args, **named)
        return kind.__call__(self, function if times == 1 else slowed(function, times), *args, **named)

    # a subclass: pytest-benchmark accepts only its own fixture
    benchmark.__class__ = type("Warm", (kind,), {"__call__": measured})
    before = calibrate()
    yield benchmark
    # the faster of the two, as a case counts by its fastest round
    benchmark.extra_info[CALIBRATION] = min(before, calibrate())


def slowed(function, times: float):
    """The function made `times` slower: it spins for the rest."""
    def run(*args, **named):
        start = time.perf_counter()
        result = function(*args, **named)
        end = start + times * (time.perf_counter() - start)
        while time.perf_counter() < end:
            pass
        return result

    return run
