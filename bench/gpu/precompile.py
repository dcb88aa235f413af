"""Compiles the kernels of the sections in parallel: one by one they would use up the sections' time.

Triton caches machine code on disk, where the sections find it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch

from foredraft.bench.gpu.sizes import Sizes, can_overlap, fill_caches, one_pass, passes, random_target
from foredraft.bench.gpu.times import start_loop
from foredraft.bench.gpu.verification_peers import CASES, VOCABULARY, Case
from foredraft.engine.loop import step
from foredraft.kernels.core.pdl_triton import PDL_LAUNCH


def jobs(sizes: Sizes, V: int = VOCABULARY) -> dict[str, Callable[[], None]]:
    """Jobs by name, a process each: the passes of a geometry, its steps, the verifications of a draft length."""
    return {f"passes of {geometry}": lambda geometry=geometry: _passes(sizes, geometry) for geometry in sizes.geometries} | {
        f"loop of {geometry}": lambda geometry=geometry: _loop(sizes, geometry) for geometry in sizes.large} | {
        f"verifications of {K}": lambda K=K: _verifications(sizes, K, V) for K in sorted({K for _, K in CASES})}


@torch.inference_mode()
def _passes(sizes: Sizes, geometry: str) -> None:
    # all layers launch the same kernels
    target = random_target(sizes, geometry, layers=1)
    for B, reads in passes(sizes, geometry):
        fill_caches(target, B, sizes.source, max(*sizes.reads, sizes.draft_tokens + 1))
        for launch in ({}, PDL_LAUNCH) if B == 1 and can_overlap(sizes) else ({},):
            target.launch = launch
            one_pass(target, B, reads)()


@torch.inference_mode()
def _loop(sizes: Sizes, geometry: str) -> None:
    target = random_target(sizes, geometry, layers=1)
    for B in sizes.batches:
        for K in (0, sizes.draft_tokens):
            drafter, fresh = start_loop(sizes, target, B, K)
            step(fresh(), target, drafter)


def _verifications(sizes: Sizes, K: int, V: int) -> None:
    # tensors that are aligned by 16 bytes are compiled separately; the number of sequences decides which are
    for B in (1, 2, 16):
        for dense in (False, True):
            Case(sizes.device, B, K, V, dense, 2).ours()


def compile_all(sizes: Sizes, seconds: float) -> Iterator[dict]:
    """Run all jobs at once, each in a process, for `seconds` at most; the rest is compiled by the sections."""
    began = time.monotonic()
    running = {name: subprocess.Popen([sys.executable, "-m", "foredraft.bench.gpu.precompile", name])
               for name in jobs(sizes)}
    for name, child in running.items():
        try:
            ended = "done" if child.wait(timeout=max(began + seconds - time.monotonic(), 0.1)) == 0 else "failed"
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            ended = "stopped"
        yield {"job": name, "ended": ended, "seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    jobs(Sizes())[sys.argv[1]]()
