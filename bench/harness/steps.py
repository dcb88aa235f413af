"""Cost of a plain decode step: by query positions, by part, and against the bytes it must read.

Random weights, and so no drafts: acceptance on random weights means nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from foredraft.bench.harness import machine
from foredraft.bench.harness.interleave import wait_until_idle
from foredraft.bench.harness.measure import spread
from foredraft.engine.models.spec import ModelConfig
from foredraft.engine.models.t5 import T5
from foredraft.engine.models.t5_weights import load_weights
from foredraft.kernels.core.workers import get_num_threads
from foredraft.kernels.model.attention import cross_attention_loop
from foredraft.kernels.model.linear import linear_loop
from foredraft.kernels.model.lm_head import CHOOSE
from foredraft.kernels.model.packing import inputs_of

# decoder position at which steps are timed: the middle of a summary
POSITION = 32
# calls of a case that are timed together
CALLS = 5
# how much a fresh process's anonymous memory grows by loading weights
GROWTH = """
import sys
from pathlib import Path
from foredraft.bench.harness.machine import anonymous_bytes
from foredraft.engine.models.t5_weights import load_weights

before = anonymous_bytes()
weights = load_weights(Path(sys.argv[1]), sys.argv[3], sys.argv[2])
print(anonymous_bytes() - before)
"""
MATRICES = ("qkv", "self_out", "cross_q", "cross_out", "ff_in", "ff_out")


def random_source(length: int, vocabulary: int = 32000) -> list[int]:
    ids = np.random.default_rng(1).integers(3, vocabulary, length - 1)
    return [*ids.tolist(), 1]


def step_bytes(target: T5, source: int, position: int = POSITION) -> dict[str, int]:
    """Bytes that a step must read: decoder matrices and norms, head, cross and self keys and values of a request."""
    w, c = target.weights, target.config
    row = c.num_decoder_layers * c.num_heads * c.d_kv * 2 * 4
    layers = sum(getattr(w, name).nbytes for name in MATRICES) + w.norms.nbytes + w.final_norm.nbytes
    page = target.cache.pages_k.itemsize
    return {"layers": layers, "head": w.head.nbytes, "cross": source * row * page // 4, "self": position * row}


def step(target: T5, R: int) -> Callable[[], None]:
    """A function that decodes `R` query positions of one admitted request and chooses the next tokens."""
    tokens = torch.arange(10, 10 + R)[None].contiguous()
    positions = torch.arange(POSITION, POSITION + R)[None].contiguous()

    def run() -> None:
        target.choose(target.decode(tokens, positions))

    return run


def parts(target: T5, R: int, source: int) -> dict[str, Callable[[], None]]:
    """The large parts of a step on their own, each over all layers, by the kernels that the step calls."""
    w, cache, threads = target.weights, target.cache, get_num_threads()
    c = target.config
    inputs = {name: np.ones((R, inputs_of(getattr(w, name))), np.float32) for name in MATRICES}
    outputs = {name: np.empty((R, getattr(w, name).shape[1] * 16), np.float32) for name in MATRICES}
    q = np.ones((R, c.num_heads, c.d_kv), np.float32)
    batch, seen = np.zeros(R, np.int64), np.empty_like(q)
    hidden = np.ones((1, R, c.d_model), np.float32)
    positions, chosen = np.zeros((1, R), np.int64), np.zeros((1, R), np.int64)

    def matrices() -> None:
        for layer in range(c.num_decoder_layers):
            for name in MATRICES:
                linear_loop(inputs[name], getattr(w, name)[layer], outputs[name], threads)

    def cross() -> None:
        for layer in range(c.num_decoder_layers):
            cross_attention_loop(q, batch, cache.pages_k[layer], cache.pages_v[layer], cache.table, cache.sources, seen,
                                 threads)

    def head() -> None:
        CHOOSE["numba"](hidden, positions, w.head, c.vocab_size, c.head_scale, chosen)

    return {"matrices": matrices, "cross-attention": cross, "head and argmax": head}


def admit(target: T5, source: Sequence[int], R: int) -> None:
    """Encode one request and fill the cache slots that the timed step reads."""
    with torch.inference_mode():
        target.reserve(1, POSITION + R, R, len(source))
        target.admit([0], [torch.tensor(source)])
        for position in range(POSITION):
            target.decode(torch.tensor([[position + 5]]), torch.tensor([[position]]))


def loaded_target(folder: Path, stored: str, dtype: str = "float32") -> tuple[T5, dict[str, int | None]]:
    """The target with this storage and type of the encoder; the bytes of its tensors, and how much a fresh process grows by
    loading them (None where the system does not report it)."""
    grown = None
    if machine.anonymous_bytes() is not None:
        command = [sys.executable, "-c", GROWTH, str(folder), stored, dtype]
        grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    weights = load_weights(folder, dtype, stored)
    size = sum(value.nbytes for value in vars(weights).values() if isinstance(value, np.ndarray | torch.Tensor))
    return T5(weights), {"loaded_bytes": grown, "weight_bytes": size}


def measure_steps(target: T5, source: int, query_positions: Sequence[int], repeats: int) -> dict:
    """Milliseconds of a step by query positions and by part, v relative to one position, and the byte floor."""
    ids = random_source(source, target.config.vocab_size - 200)
    admit(target, ids, max(query_positions))
    bandwidth = []
    cases: dict[str, Callable[[], None]] = {f"step {n}": step(target, n) for n in query_positions}
    for n in sorted({1, min(6, max(query_positions))}):
        cases |= {f"{name} {n}": run for name, run in parts(target, n, source).items()}
    cases["encode"] = lambda: target.encode(torch.tensor(ids))
    taken: dict[str, list[float]] = {name: [] for name in cases}
    with torch.inference_mode():
        for _ in range(repeats):
            bandwidth.append(machine.read_bandwidth(times=2))
            for name, run in cases.items():
                run()
                wait_until_idle()
                start = time.perf_counter()
                for _ in range(CALLS):
                    run()
                taken[name].append((time.perf_counter() - start) / CALLS)
    steps = {n: spread(taken[f"step {n}"]) for n in query_positions}
    read = float(np.median(bandwidth))
    volume = step_bytes(target, source)
    floor = sum(volume.values()) / read / 1e9
    one = steps[query_positions[0]]["median"]
    return {
        "read_gb_s": read, "bytes": volume, "floor_ms": floor * 1e3,
        "step_ms": {str(n): {key: value * 1e3 for key, value in steps[n].items()} for n in query_positions},
        "over_floor": one / floor,
        "v": {str(n): steps[n]["median"] / one for n in query_positions},
        "parts_ms": {name: float(np.median(values)) * 1e3 for name, values in taken.items() if not name.startswith("step")},
        "encoder": encoder_floor(target, source, float(np.median(taken["encode"]))),
    }


def encoder_floor(target: T5, source: int, seconds: float) -> dict[str, float]:
    """FLOPs of encoding, and the rate of a large matrix product measured now."""
    flops, rate = encoder_flops(target.config, source), product_rate(target.config, source)
    return {"gflop": flops / 1e9, "gflop_s": rate / 1e9, "ms": seconds * 1e3, "share_of_floor": flops / rate / seconds}


def encoder_flops(c: ModelConfig, source: int) -> int:
    """FLOPs of the encoder over S source positions."""
    inner = c.num_heads * c.d_kv
    weights = c.num_layers * (4 * inner + (3 if c.gated else 2) * c.d_ff) * c.d_model
    return 2 * source * weights + c.num_layers * 4 * source * source * inner


def product_rate(c: ModelConfig, M: int) -> float:
    """FLOP/s of a large matrix product of the library, [M, C] by [C, F], measured now."""
    a, b = torch.ones(M, c.d_model), torch.ones(c.d_ff, c.d_model)
    rates = []
    for _ in range(20):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        rates.append(2 * M * c.d_model * c.d_ff / (time.perf_counter() - start))
    return float(np.percentile(rates, 80))
