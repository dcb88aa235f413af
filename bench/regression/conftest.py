"""The pytest-benchmark fixture of these cases: each case runs between two calibrations of the machine.

FOREDRAFT_BENCH_SLOW=1.5 makes every case take 1.5 times as long, to test `foredraft bench compare`.
"""

from __future__ import annotations

import os
import time

import pytest

from foredraft.bench.regression.calibration import calibrate
from foredraft.bench.regression.compare_runs import CALIBRATION


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
