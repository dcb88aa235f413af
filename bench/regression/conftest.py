"""The pytest-benchmark fixture of these cases: every case stands between two calibrations of the machine.

FOREDRAFT_BENCH_SLOW=1.5 makes every case take that many times as long: a seeded slowdown that `foredraft bench compare`
must see.
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
        # one call beforehand: from a cold one pytest-benchmark would conclude that few rounds fill its time
        function(*args, **named)
        return kind.__call__(self, function if times == 1 else slowed(function, times), *args, **named)

    # a class of its own, for pytest-benchmark takes nothing but its fixture from a case
    benchmark.__class__ = type("Warm", (kind,), {"__call__": measured})
    before = calibrate()
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
