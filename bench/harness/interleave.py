"""Interleaving: random orders of methods, and a machine that is idle before each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

# seconds; thread pools of other libraries spin for up to 0.2 s after their work
LONGEST = 1.0
LOOK = 0.005


def orders(names: Sequence[str], seed: int) -> Iterator[list[str]]:
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
