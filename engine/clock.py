"""Time measurement that excludes the compilation of kernels."""

from __future__ import annotations

from time import perf_counter

from foredraft.kernels.core.compilation import compile_seconds


def now() -> float:
    """perf_counter() minus the seconds that this process has spent on compiling kernels."""
    return perf_counter() - compile_seconds()
