"""The pytest-benchmark fixture of these cases: every case stands between two calibrations of the machine.

FOREDRAFT_BENCH_SLOW=1.5 makes every case take that many times as long: a seeded slowdown that `foredraft bench compare`
must see.
"""

from __future__ import annotations

import os
import time

import pytest

from foredraft.bench.calibration import calibrate
from foredraft.bench.regression import CALIBRATION


@pytest.fixture
def benchmark(benchmark):
    if not benchmark.enabled:
        yield benchmark
        return
    before = calibrate()
    if (times := float(os.environ.get("FOREDRAFT_BENCH_SLOW", "1"))) != 1:
        kind = type(benchmark)
        # a class of its own, for pytest-benchmark takes nothing but its fixture from a case
        benchmark.__class__ = type("Slowed", (kind,), {
            "__call__": lambda self, function, *args, **named: kind.__call__(self, slowed(function, times), *args, **named)})
    yield benchmark
    # the faster of the two: a case is told by its fastest round as well
    benchmark.extra_info[CALIBRATION] = min(before, calibrate())


def slowed(function, times: float):
    """The function, taking `times` as long: it spins for the rest."""
    def run(*args, **named):
        start = time.perf_counter()
        result = function(*args, **named)
        end = start + times * (time.perf_counter() - start)
        while time.perf_counter() < end:
            pass
        return result

    return run
