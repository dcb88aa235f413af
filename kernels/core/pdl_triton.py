"""Programmatic dependent launch (PDL): a kernel is launched while the one before it still runs, and waits for its results.

It hides launch latency inside a CUDA graph; NVIDIA compute capability 9.0 and later. A kernel calls `pdl_wait` before it
reads or writes anything, and is launched with the options PDL_LAUNCH.
"""

from __future__ import annotations

from foredraft.kernels.core.backend_triton import jit, tl

PDL_LAUNCH = {"PDL": True, "launch_pdl": True}


@jit
def pdl_wait(PDL: tl.constexpr):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
