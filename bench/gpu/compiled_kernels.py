"""Every kernel of a whole round as machine code for a GPU that is not here: what it takes of a multiprocessor.

A real `step` is recorded at a real model's sizes, on tensors that hold nothing, and its launches are compiled, not run
(kernels/core/triton_compile.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from foredraft import embedded
from foredraft.bench.gpu.roofline import LISTED, Round, config_of
from foredraft.bench.harness.geometry import GEOMETRIES
from foredraft.engine.drafters.cuda.lookup_cuda import LookupDrafterCuda, NgramDrafterCuda
from foredraft.engine.drafters.cuda.recurrent_cuda import CNNDrafterCuda, LSTMDrafterCuda
from foredraft.engine.drafters.cuda.t5_drafter_cuda import T5DrafterCuda
from foredraft.engine.drafters.neural.cnn import CNNConfig, CNNModel
from foredraft.engine.drafters.neural.lstm import LSTMConfig, LSTMModel
from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.loop import step
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import STORED, T5WeightsCuda, assemble
from foredraft.engine.models.t5_weights import ModelConfig
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState, Draft
from foredraft.errors import UserError
from foredraft.kernels.core.triton_compile import Cost, compiled, distinct, launches
from foredraft.ngram_native.table import Table

DRAFTERS = ("none", "lookup", "ngram", "lookup+ngram", "t5shallow", "lstm", "cnn", "tree")
# A thread's most registers, bytes of shared memory a program may have.
LIMITS = {"sm_80": (255, 163 * 1024), "sm_90": (255, 227 * 1024), "gfx942": (512, 64 * 1024)}


def round_of(geometry: str, r: Round, stored: str = "bf16", overlap: bool = False) -> Callable[[], None]:
    """One round of the geometry, its decoder cut to one layer, for the layers launch the same. UserError: what is unknown.

    `stored`: of the decoder's matrices, fp32 or bf16."""
    if r.drafter not in DRAFTERS:
        raise UserError(f"drafter {r.drafter!r} is not known here; one of {', '.join(DRAFTERS)}")
    target = T5Cuda(_weights(geometry, stored), overlap=overlap)
    target.reserve(r.batch_size, r.position, r.draft_tokens, r.source)
    drafter, state = _drafter(geometry, r, stored, target.weights), _state(r, target.config.d_model)
    return lambda: step(state, target, drafter)


def measure(run: Callable[[], None], machines: Sequence[str], only: str = "") -> Iterator[Cost]:
    """What every distinct launch of `run` takes on each machine; `only`: of kernels whose name holds this."""
    with torch.inference_mode():
        found = [launch for launch in distinct(launches(run)) if only in launch.kernel.__name__]
    for launch in found:
        for machine in machines:
            yield compiled(launch, machine)


def fits(cost: Cost) -> bool:
    """Whether the machine can run it: a kernel that spills runs too, more slowly."""
    registers, shared = LIMITS[cost.target]
    return cost.registers <= registers and cost.shared <= shared


def _weights(geometry: str, stored: str) -> T5WeightsCuda:
    config_of(geometry)
    config = ModelConfig.from_dict(GEOMETRIES[geometry] | {"num_layers": 1, "num_decoder_layers": 1}, geometry)
    nothing = torch.zeros(())
    return assemble(config, STORED[stored], stored, GEOMETRIES[geometry]["tie_word_embeddings"], "cpu",
                    lambda name, shape: nothing.expand(shape))


class _Tree:
    """A tree of point masses, as a Drafter of one's own may propose on a device too; it launches nothing itself."""

    def draft(self, state: DecodeState) -> Draft:
        draft = Draft.empty(state.batch_size, state.max_draft)
        draft.parents = torch.zeros_like(draft.tokens)
        return draft


def _drafter(geometry: str, r: Round, stored: str, target: T5WeightsCuda) -> Drafter:
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
        drafter.lists.reserve(r.batch_size, r.source)
        return drafter
    sizes = dict(vocab_size=target.config.vocab_size, d_model=target.config.d_model, head_scale=1.0, start_token=0,
                 end_token=1, pad_token=0, target="", target_hash="")
    if r.drafter == "lstm":
        drafter = LSTMDrafterCuda(LSTMModel(LSTMConfig(**sizes)), target.embedding, target.head, stored)
    else:
        drafter = CNNDrafterCuda(CNNModel(CNNConfig(**sizes)), target.embedding, target.head, stored)
    drafter.reserve(r.batch_size, r.source)
    return drafter


def _state(r: Round, width: int) -> DecodeState:
    def column(value: float, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.full((r.batch_size,), value, dtype=dtype)

    state = DecodeState(
        limits=column(r.position), draft_tokens=column(r.draft_tokens), temperature=column(r.sampled, torch.float32),
        top_k=column(5 * r.cuts), top_p=column(1.0, torch.float32), seeds=column(0), start_token=0, end_token=1, width=width)
    state.backend = "triton"
    return state
