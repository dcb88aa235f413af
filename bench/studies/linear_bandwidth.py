"""Bandwidth of the linear kernel for few rows, by rows and storage of the weights, beside the library's product.

    python -m foredraft.bench.studies.linear_bandwidth

Copies of a matrix take part in rotation, so that none is in the caches when it is read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer

from foredraft.bench.harness import machine
from foredraft.bench.harness.interleave import wait_until_idle
from foredraft.bench.harness.record import common_fields
from foredraft.bench.report.tables import Table
from foredraft.cli import options
from foredraft.cli.measuring import finish, run_script
from foredraft.cli.output import announce_compilation
from foredraft.errors import UserError
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.model.linear import linear_loop
from foredraft.kernels.model.packing import pack, quantize_int4, quantize_int8

# more than the last-level cache of most machines
ROTATED_BYTES = 600_000_000
STORED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fp32": pack,
    "bf16": lambda weight: pack(torch.from_numpy(weight).bfloat16().view(torch.int16).numpy().view(np.uint16)),
    "int8": quantize_int8,
    "int4": quantize_int4,
}


def parse_shape(text: str) -> tuple[int, int]:
    """"(N, K) of "NxK". UserError for other text."""
    sizes = text.lower().split("x")
    if len(sizes) != 2 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise UserError(f"--shapes: {text!r} is not a shape; write outputs x inputs, such as 2048x768")
    return int(sizes[0]), int(sizes[1])


def _median_seconds(call: Callable[[Any], object], copies: Sequence[Any], repeats: int) -> float:
    """Seconds a call over `copies`, median of `repeats` passes after a warm-up pass, each on an idle machine."""
    taken = []
    for _ in range(repeats + 1):
        wait_until_idle()
        start = time.perf_counter()
        for copy in copies:
            call(copy)
        taken.append((time.perf_counter() - start) / len(copies))
    return float(np.median(taken[1:]))


def measure_shape(N: int, K: int, rows: Sequence[int], stored: Sequence[str], repeats: int,
                  rotated: int = ROTATED_BYTES) -> dict:
    """GB/s of an [N, K] weight by storage and rows, of F.linear (fp32) too, and the read bandwidth measured beside them.

    Returns {"read_gb_s": ..., "gb_s": {storage or "F.linear": {rows: GB/s}}}; only the weight's bytes are counted.
    """
    weight = np.random.default_rng(0).standard_normal((N, K), dtype=np.float32)
    inputs = {M: np.random.default_rng(M).standard_normal((M, K), dtype=np.float32) for M in rows}
    outputs = {M: np.empty((M, N), np.float32) for M in rows}
    threads = get_num_threads()

    def ours(M: int) -> Callable[[np.ndarray], None]:
        return lambda packed: linear_loop(inputs[M], packed, outputs[M], threads)

    def library(M: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return partial(F.linear, torch.from_numpy(inputs[M]))

    products = {name: (STORED[name](weight), ours, np.copy) for name in stored}
    products["F.linear"] = torch.from_numpy(weight), library, torch.clone
    found: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for name, (packed, product, copy) in products.items():
            copies = [copy(packed) for _ in range(max(1, rotated // packed.nbytes))]
            found[name] = {str(M): packed.nbytes / 1e9 / _median_seconds(product(M), copies, repeats) for M in rows}
            del copies
    wait_until_idle()
    return {"read_gb_s": machine.read_bandwidth(), "gb_s": found}


def main(
    shapes: Annotated[
        str, typer.Option(help="Weights, outputs x inputs, separated by commas.")] = "8192x4096,2048x768,768x768,32128x768",
    weights: Annotated[str, typer.Option(help="Storage of the weights: fp32, bf16, int8, int4, separated by "
                                              "commas.")] = "fp32,bf16,int8,int4",
    rows: Annotated[str, typer.Option(help="Rows of a product, separated by commas.")] = "1,2,4,6,8,16",
    repeats: options.Repeats = 5,
    out: options.Results = Path("bench/results"),
    as_json: options.Json = False,
) -> None:
    """Time the linear kernel on random weights that no cache holds."""
    sizes = {shape: parse_shape(shape) for shape in shapes.split(",")}
    names, counts = weights.split(","), options.parse_numbers("--rows", rows, int, 1)
    if unknown := [name for name in names if name not in STORED]:
        raise UserError(f"--weights: {unknown[0]!r} is not known; choose from {', '.join(STORED)}")
    announce_compilation()
    found = {shape: measure_shape(*sizes[shape], counts, names, repeats) for shape in sizes}
    finish([common_fields("kernels") | {"repeats": repeats, "shapes": found}], out, [Table(
        f"{shape}: GB/s of weights by rows; memory reads at {figures['read_gb_s']:.1f}", ("weights", *map(str, counts)),
        [[name, *(f"{speeds[str(count)]:.1f}" for count in counts)] for name, speeds in figures["gb_s"].items()])
        for shape, figures in found.items()], as_json)


if __name__ == "__main__":
    run_script(main)
