"""Timing: random orders of methods, a machine that is idle before each of them, and the fastest of several calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

# seconds; thread pools of other libraries spin for up to 0.2 s after their work
LONGEST = 1.0
LOOK = 0.005


def orders(names: Sequence[Any], seed: int) -> Iterator[list[Any]]:
    """Endless random orders of the names, so that no name always follows the same other name."""
    generator = np.random.default_rng(seed)
    while True:
        yield [names[i] for i in generator.permutation(len(names))]


def wait_until_idle(sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.perf_counter,
                    cpu: Callable[[], float] = time.process_time) -> None:
    """Sleep until this process uses less than a tenth of a processor, at most 1 s."""
    began = clock()
    while clock() - began < LONGEST:
        start, used = clock(), cpu()
        sleep(LOOK)
        if cpu() - used < 0.1 * (clock() - start):
            return


def best_of(run: Callable[[], object], times: int, before: Callable[[], None] = lambda: None) -> float:
    """Seconds of the fastest of `times` calls, after one warm-up call; `before` is called before each, untimed.

    The fastest, because other processes can only add time.
    """
    run()
    best = float("inf")
    for _ in range(times):
        before()
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
