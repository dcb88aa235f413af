"""Registers and shared memory of each kernel of a step, compiled for GPUs that are not present.

    python -m foredraft.bench.gpu.compiled_kernels --geometry flan-t5-xl --machines sm_90

A real `step` is recorded at a real model's sizes on empty tensors, and its launches are compiled, not run
(kernels/core/triton_compile.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Annotated

import torch
import typer
from torch import Tensor

from foredraft import embedded
from foredraft.bench.gpu.roofline import LISTED, Step, config_of
from foredraft.bench.harness.geometry import GEOMETRIES
from foredraft.cli import options
from foredraft.cli.measuring import run_script
from foredraft.engine.drafters.cuda.lookup_cuda import LookupDrafterCuda, NgramDrafterCuda
from foredraft.engine.drafters.cuda.recurrent_cuda import CNNDrafterCuda, LSTMDrafterCuda
from foredraft.engine.drafters.cuda.t5_drafter_cuda import T5DrafterCuda
from foredraft.engine.drafters.neural.cnn import CNNConfig, CNNModel
from foredraft.engine.drafters.neural.lstm import LSTMConfig, LSTMModel
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.loop import step
from foredraft.engine.models.spec import ModelConfig
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import STORED, T5WeightsCuda, assemble
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState, Draft
from foredraft.errors import UserError
from foredraft.kernels.core.backend_triton import HAS_TRITON, is_interpreted
from foredraft.kernels.core.triton_compile import Cost, compiled, distinct, launches, table
from foredraft.ngram_native.table import Table

DRAFTERS = ("none", "lookup", "ngram", "lookup+ngram", "t5shallow", "lstm", "cnn", "tree")
# most registers of a thread, and bytes of shared memory of a program
LIMITS = {"sm_80": (255, 163 * 1024), "sm_90": (255, 227 * 1024), "gfx942": (512, 64 * 1024)}


def step_of(geometry: str, r: Step, stored: str = "bf16") -> Callable[[], None]:
    """One step of the geometry with one decoder layer, as all layers launch the same kernels. UserError: an unknown name.

    `stored`: storage of the decoder's matrices, fp32 or bf16.
    """
    if r.drafter not in DRAFTERS:
        raise UserError(f"drafter {r.drafter!r} is not known here; one of {', '.join(DRAFTERS)}")
    target = T5Cuda(_weights(geometry, stored))
    target.reserve(r.batch_size, r.position, r.draft_tokens, r.source)
    drafter, state = _drafter(geometry, r, stored, target.weights), _state(r, target.config.d_model)
    return lambda: step(state, target, drafter)


def measure(run: Callable[[], None], machines: Sequence[str], only: str = "") -> Iterator[Cost]:
    """The cost of each distinct launch of `run` on each machine; `only`: of kernels whose name contains this."""
    for machine in machines:
        with torch.inference_mode():
            found = [launch for launch in distinct(launches(run, machine)) if only in launch.kernel.__name__]
        for launch in found:
            yield compiled(launch, machine)


def fits(cost: Cost) -> bool:
    """Whether the machine can run the kernel; one that spills runs, but more slowly."""
    registers, shared = LIMITS[cost.target]
    return cost.registers <= registers and cost.shared <= shared


def _weights(geometry: str, stored: str) -> T5WeightsCuda:
    config_of(geometry)
    config = ModelConfig.from_dict(GEOMETRIES[geometry] | {"num_layers": 1, "num_decoder_layers": 1}, geometry)
    nothing = torch.zeros(())
    return assemble(config, STORED[stored], stored, GEOMETRIES[geometry]["tie_word_embeddings"], "cpu",
                    lambda name, shape: nothing.expand(shape))


class _Tree:
    """A drafter that proposes a tree of point masses without launching a kernel."""

    def draft(self, state: DecodeState) -> Draft:
        draft = Draft.empty(state.batch_size, state.max_draft)
        draft.parents = torch.zeros_like(draft.tokens)
        return draft


def _drafter(geometry: str, r: Step, stored: str, target: T5WeightsCuda) -> Drafter:
    if r.drafter == "none":
        return NoDrafter()
    if r.drafter == "tree":
        return _Tree()
    if r.drafter == "ngram":
        return NgramDrafterCuda(Table.open(embedded.NGRAM), "cpu")
    if r.drafter.startswith("lookup"):
        drafter = LookupDrafterCuda("cpu", table=Table.open(embedded.NGRAM) if "ngram" in r.drafter else None)
        drafter.reserve(r.batch_size, r.source)
        return drafter
    if r.drafter == "t5shallow":
        drafter = T5DrafterCuda(_weights(geometry, stored), torch.arange(LISTED))
        drafter.t5.reserve(r.batch_size, r.position, 1, r.source)
        drafter.vocabulary.reserve(r.batch_size, r.source)
        return drafter
    sizes = dict(vocab_size=target.config.vocab_size, d_model=target.config.d_model, head_scale=1.0, start_token=0,
                 end_token=1, pad_token=0, target="", target_hash="")
    if r.drafter == "lstm":
        drafter = LSTMDrafterCuda(LSTMModel(LSTMConfig(**sizes)), target.embedding, target.head, stored)
    else:
        drafter = CNNDrafterCuda(CNNModel(CNNConfig(**sizes)), target.embedding, target.head, stored)
    drafter.reserve(r.batch_size, r.source)
    return drafter


def _state(r: Step, width: int) -> DecodeState:
    def column(value: float, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.full((r.batch_size,), value, dtype=dtype)

    state = DecodeState(
        limits=column(r.position), draft_tokens=column(r.draft_tokens), temperature=column(r.sampled, torch.float32),
        top_k=column(5 * r.cuts), top_p=column(1.0, torch.float32), seeds=column(0), start_token=0, end_token=1, width=width)
    state.backend = "triton"
    return state


def main(
    geometry: Annotated[str, typer.Option(help="Sizes of t5-small, flan-t5-small, -base, -large or -xl.")] = "flan-t5-xl",
    machines: Annotated[str, typer.Option(help="sm_80, sm_90, gfx942, separated by commas.")] = "sm_80,sm_90,gfx942",
    batch_size: options.BatchSize = 8,
    draft_tokens: options.MaxDraftTokens = 5,
    drafter: Annotated[
        str, typer.Option(help=f"{', '.join(DRAFTERS)}; tree is a drafter that proposes trees.")] = "lookup",
    sampled: Annotated[bool, typer.Option("--sampled", help="At temperature 1, with top-k.")] = False,
    weights: Annotated[str, typer.Option(help="Storage of the decoder: fp32 or bf16.")] = "bf16",
    only: Annotated[str, typer.Option(help="Kernels whose name contains this. Default: all.")] = "",
    as_json: options.Json = False,
) -> None:
    """Compile every kernel of a step for machines that are not present."""
    names = machines.split(",")
    if unknown := [name for name in names if name not in LIMITS]:
        raise UserError(f"--machines: {unknown[0]!r} is not known; choose from {', '.join(LIMITS)}")
    if weights not in ("fp32", "bf16"):
        raise UserError(f"--weights {weights!r} is not for a GPU; one of fp32, bf16")
    if not HAS_TRITON or is_interpreted():
        raise UserError("this needs triton's compiler: pip install triton, and leave TRITON_INTERPRET unset")
    run = step_of(geometry, Step(batch_size, draft_tokens, position=128, sampled=sampled, cuts=sampled, drafter=drafter),
                  weights)
    found = list(measure(run, names, only))
    print(table(found))
    for cost in found:
        if not fits(cost):
            print(f"does not fit: {cost.kernel} on {cost.target}")
    if as_json:
        print(json.dumps({"compiled": [asdict(cost) | {"fits": fits(cost)} for cost in found]}))


if __name__ == "__main__":
    run_script(main)
