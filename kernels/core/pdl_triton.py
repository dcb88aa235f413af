"""Launches that overlap: a kernel is put in place while the one before it ends, and waits there for its results.

Programmatic dependent launch, NVIDIA compute capability 9.0 and later: it hides what a launch costs inside a graph. A kernel
calls `await_inputs` before it reads or writes anything, and is launched with `OVERLAPPED`.
"""

from __future__ import annotations

from foredraft.kernels.core.backend import jit, tl

OVERLAPPED = {"OVERLAP": True, "launch_pdl": True}


@jit
def await_inputs(OVERLAP: tl.constexpr):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
