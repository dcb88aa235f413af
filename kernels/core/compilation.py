"""Counts and times the compilation of numba kernels, so that callers can announce it and exclude it from measurements."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter

from foredraft.kernels.core.backend import HAS_NUMBA

# called once for each process, before the first kernel is compiled
on_first: list[Callable[[], None]] = []
_clock = None


def compiled() -> int:
    """Kernels that this process has compiled, without those that it loaded from the disk."""
    return _clock.count if _clock else 0


def compile_seconds() -> float:
    """Wall seconds that this process has spent on compiling."""
    return _clock.seconds if _clock else 0.0


if HAS_NUMBA:
    from numba.core import event

    class _Clock(event.Listener):
        """Listens to numba. A kernel is compiled inside the compilation of the kernel that calls it, in the same thread."""

        def __init__(self):
            self.count, self.seconds = 0, 0.0
            self._depth, self._since = threading.local(), 0.0

        def on_start(self, event):
            depth = getattr(self._depth, "value", 0)
            self._depth.value = depth + 1
            if depth:
                return
            while on_first:
                on_first.pop()()
            self._since = perf_counter()

        def on_end(self, event):
            self._depth.value -= 1
            self.count += 1
            if not self._depth.value:
                # numba's lock lets one thread compile at a time
                self.seconds += perf_counter() - self._since

    _clock = _Clock()
    event.register("numba:compile", _clock)
