"""The clock of everything that is measured while decoding."""

from __future__ import annotations

from time import perf_counter

from foredraft.kernels.core.compilation import compile_seconds


def now() -> float:
    """Seconds, by a clock that stands still while kernels are compiled."""
    return perf_counter() - compile_seconds()
