"""Which implementation runs where. numba and triton are optional at import: a file of kernels always imports.

`njit`, `prange`, `intrinsic` come from here; without numba a compiled kernel raises ImportError when it is called.
Compiled code is cached on disk; where the default place is not writable, numba's own fallback is a per-user folder.
"""

from __future__ import annotations

import os

try:
    import numba
    from numba import get_num_threads, prange
    from numba.extending import intrinsic

    HAS_NUMBA = True
except ImportError:
    HAS_NUMBA = False
    prange = range

    def get_num_threads() -> int:
        return os.cpu_count() or 1

    def intrinsic(function):
        return function


def njit(**options):
    """numba.njit with caching and without the GIL; `options` add to or override these two."""
    if HAS_NUMBA:
        return numba.njit(**({"cache": True, "nogil": True} | options))

    def decorate(function):
        def missing(*_args, **_kwargs):
            raise ImportError(f"{function.__name__} needs numba: pip install numba")

        return missing

    return decorate


def set_threads(count: int) -> None:
    """Use `count` threads in compiled kernels; more than the machine's cores are cut to them."""
    if HAS_NUMBA:
        numba.set_num_threads(max(1, min(count, numba.config.NUMBA_NUM_THREADS)))
