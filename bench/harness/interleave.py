"""Whose turn it is, and a quiet machine for it: what runs before a method must not decide how fast that method looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

# Thread pools of other libraries spin for up to 0.2 s after their work, in the way of whoever comes next.
LONGEST = 1.0
LOOK = 0.005


def orders(names: Sequence[str], seed: int) -> Iterator[list[str]]:
    """Endless random orders of the names, so that none always follows the same other."""
    draw = np.random.default_rng(seed)
    while True:
        yield [names[i] for i in draw.permutation(len(names))]


def wait_until_idle(sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.perf_counter,
                    cpu: Callable[[], float] = time.process_time) -> None:
    """Sleep until this process's threads do: less than a tenth of a look's time on the processor; 1 s at most."""
    began = clock()
    while clock() - began < LONGEST:
        start, used = clock(), cpu()
        sleep(LOOK)
        if cpu() - used < 0.1 * (clock() - start):
            return
