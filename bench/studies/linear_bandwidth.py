"""How fast the skinny linear streams its weights, by rows and storage, beside the library's own product.

A matrix is rotated with copies of itself, so that none is still in the caches when its turn comes again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from foredraft.bench.harness import machine
from foredraft.bench.harness.interleave import wait_until_idle
from foredraft.errors import UserError
from foredraft.kernels.core.backend import get_num_threads
from foredraft.kernels.model.linear import linear_loop, pack, quantize

# More than the last-level caches of most machines hold.
ROTATED_BYTES = 600_000_000
STORED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fp32": pack,
    "bf16": lambda weight: pack(torch.from_numpy(weight).bfloat16().view(torch.int16).numpy().view(np.uint16)),
    "int8": quantize,
}


def parse_shape(text: str) -> tuple[int, int]:
    """"NxK" to (N, K). UserError: it is none."""
    sizes = text.lower().split("x")
    if len(sizes) != 2 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise UserError(f"--shapes: {text!r} is no shape; write outputs x inputs, as 2048x768")
    return int(sizes[0]), int(sizes[1])


def _median_seconds(call: Callable[[Any], object], copies: Sequence[Any], repeats: int) -> float:
    """Seconds a call over `copies`, median of `repeats` passes; one pass goes before, and idle threads are waited for."""
    taken = []
    for _ in range(repeats + 1):
        wait_until_idle()
        start = time.perf_counter()
        for copy in copies:
            call(copy)
        taken.append((time.perf_counter() - start) / len(copies))
    return float(np.median(taken[1:]))


def _speeds(product: Callable[[int], Callable[[Any], object]], copies: Sequence[Any], rows: Sequence[int],
            repeats: int) -> dict[str, float]:
    """GB/s of the weight's own bytes by rows; product(M) multiplies M rows by a copy of the weight."""
    return {str(M): copies[0].nbytes / 1e9 / _median_seconds(product(M), copies, repeats) for M in rows}


def measure_shape(N: int, K: int, rows: Sequence[int], stored: Sequence[str], repeats: int,
                  rotated: int = ROTATED_BYTES) -> dict:
    """GB/s of an [N, K] weight by storage and rows, F.linear's (fp32) too, and the read bandwidth of the same minutes.

    {"read_gb_s", "gb_s": {storage or "F.linear": {rows: GB/s}}}; bytes are those of the weight alone.
    """
    weight = np.random.default_rng(0).standard_normal((N, K), dtype=np.float32)
    inputs = {M: np.random.default_rng(M).standard_normal((M, K), dtype=np.float32) for M in rows}
    outputs = {M: np.empty((M, N), np.float32) for M in rows}
    threads = get_num_threads()

    def ours(M: int) -> Callable[[np.ndarray], None]:
        return lambda packed: linear_loop(inputs[M], packed, outputs[M], threads)

    def library(M: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return partial(F.linear, torch.from_numpy(inputs[M]))

    found = {}
    for name in stored:
        packed = STORED[name](weight)
        found[name] = _speeds(ours, [packed.copy() for _ in range(max(1, rotated // packed.nbytes))], rows, repeats)
    copies = [torch.from_numpy(weight).clone() for _ in range(max(1, rotated // weight.nbytes))]
    with torch.inference_mode():
        found["F.linear"] = _speeds(library, copies, rows, repeats)
    wait_until_idle()
    return {"read_gb_s": machine.read_bandwidth(), "gb_s": found}
