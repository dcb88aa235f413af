"""Sizes of the sections (full on a GPU, tiny on the CPU in tests), and how they are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from foredraft import embedded
from foredraft.bench.harness.geometry import GEOMETRIES
from foredraft.bench.harness.measure import spread
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import random_cuda_weights

# decoder position at which passes are timed: the middle of a summary
POSITION = 64


@dataclass
class Sizes:
    """`geometries`: entries of a config.json by name. `large`: those timed at every batch size. `together`: sources of one
    batch. `dtype`: of the embedded model's encoder. `drafters`: a folder of trained drafters' folders."""

    device: str = "cuda"
    dtype: str = "bfloat16"
    geometries: dict[str, dict] = field(default_factory=lambda: {
        name: GEOMETRIES[name] for name in ("flan-t5-xl", "flan-t5-base", "flan-t5-large", "flan-t5-small")})
    large: tuple[str, ...] = ("flan-t5-xl", "flan-t5-base")
    checked: str = "flan-t5-xl"
    batches: tuple[int, ...] = (1, 8, 32, 128)
    reads: tuple[int, ...] = (1, 2, 4, 6, 9)
    draft_tokens: int = 5
    source: int = 512
    together: tuple[int, int] = (300, 1000)
    new_tokens: int = 64
    repeats: int = 20
    texts: int | None = None
    megabytes: int = 2048
    drafters: str = str(embedded.LSTM.parent)


def random_target(sizes: Sizes, geometry: str, layers: int | None = None) -> T5Cuda:
    """Random weights of a geometry in bf16, created on the device; `layers` of its decoder, all by default."""
    config = sizes.geometries[geometry]
    if layers is not None:
        config = config | {"num_decoder_layers": layers, "num_layers": 1}
    return T5Cuda(random_cuda_weights(config, sizes.device, "bfloat16"))


def can_overlap(sizes: Sizes) -> bool:
    """Whether the device supports programmatic dependent launches (kernels/core/pdl_triton.py)."""
    return sizes.device != "cpu" and torch.version.hip is None and torch.cuda.get_device_capability(sizes.device) >= (9, 0)


def fill_caches(target: T5Cuda, B: int, source: int, reads: int) -> None:
    """Different random keys and values, as if `B` requests had been encoded and decoded up to POSITION."""
    target.reserve(B, POSITION + reads, reads - 1, source)
    generator = torch.Generator(target.device).manual_seed(B)
    for name in ("k", "v", "pages_k", "pages_v"):
        for layer in target.buffers[name]:
            layer.normal_(generator=generator)
    target.buffers["sources"].fill_(source)


def passes(sizes: Sizes, geometry: str) -> list[tuple[int, int]]:
    """(batch size, tokens of each request) of the passes timed at a geometry: of one request, then for large ones by
    batch."""
    by_batch = [(B, reads) for B in sizes.batches if B > 1 for reads in (1, sizes.draft_tokens + 1)]
    return [(1, reads) for reads in sizes.reads] + (by_batch if geometry in sizes.large else [])


def one_pass(target: T5Cuda, B: int, reads: int) -> Callable[[], torch.Tensor]:
    """A function that decodes `reads` tokens of each of `B` requests and chooses the next tokens."""
    tokens = torch.randint(3, target.config.vocab_size, (B, reads), device=target.device)
    positions = torch.arange(POSITION, POSITION + reads, device=target.device).repeat(B, 1)
    return lambda: target.choose(target.decode(tokens, positions))


def captured(sizes: Sizes, run: Callable[[], object]) -> Callable[[], object]:
    """`run` as a captured graph, after a warm-up; on the CPU `run` itself."""
    run()
    if sizes.device == "cpu":
        return run
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay


def microseconds(values: list[float]) -> dict[str, float]:
    return {name: value * 1e6 for name, value in spread(values).items()}


def seconds(sizes: Sizes, run: Callable[[], object], inner: int = 5) -> list[float]:
    """`sizes.repeats` means of `inner` calls, after a warm-up call."""
    run()
    taken = []
    for _ in range(sizes.repeats):
        if sizes.device == "cpu":
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
            continue
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        for _ in range(inner):
            run()
        after.record()
        after.synchronize()
        taken.append(before.elapsed_time(after) / 1e3 / inner)
    return taken
