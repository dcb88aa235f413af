"""Launches that overlap: a kernel is put in place while the one before it ends, and waits there for its results.

Programmatic dependent launch, NVIDIA compute capability 9.0 and later: it hides what a launch costs inside a graph. A kernel
calls `pdl_wait` before it reads or writes anything, and is launched with `PDL_LAUNCH`.
"""

from __future__ import annotations

from foredraft.kernels.core.backend import jit, tl

PDL_LAUNCH = {"PDL": True, "launch_pdl": True}


@jit
def pdl_wait(PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
