"""The T5 drafters on a device (engine/drafters/neural/t5_drafter.py): one pass a draft token, inside the captured step.

Greedy drafts are those of the CPU's drafter up to rounding. Sampled drafts have the same distribution; their noise meets the
tokens in another order. `draft` must run in every step: it reads no more than the last two committed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foredraft.engine.drafters.cuda.draft_buffers import DraftBuffers, PerState
from foredraft.engine.drafters.cuda.draft_vocabulary_cuda import DraftVocabularyCuda
from foredraft.engine.drafters.neural.t5_drafter import ShallowT5Model, check_vocabulary
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.models.checkpoint import Tensors
from foredraft.engine.models.device_memory import check_memory
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import STORED, T5WeightsCuda, assemble, load_cuda_weights, weight_bytes
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState, Draft, DraftBudget

# Decoder positions that are allocated for the first request.
POSITIONS = 192


class T5DrafterCuda(Drafter):
    """Drafts of a T5, over its own encoder's output or the target's.

    Parameters
    ----------
    weights : T5WeightsCuda
        Without an encoder, it reads the target's encoder output.
    tokens : Tensor [F] int64, optional
        The draft vocabulary beside the tokens of the source, most frequent first; by default all tokens.
    """

    name = "t5"

    def __init__(self, weights: T5WeightsCuda, tokens: Tensor | None = None):
        self.t5 = T5Cuda(weights)
        self.vocabulary = DraftVocabularyCuda(weights.head, torch.zeros(0) if tokens is None else tokens, copies=False)
        self.draft_buffers = PerState(lambda state: DraftBuffers(state, weights.config.vocab_size, PROPOSERS.index("t5")))

    @classmethod
    def open(cls, folder: Path, target: T5WeightsCuda, target_folder: Path, tokenizer: Any) -> T5DrafterCuda:
        """Read a T5 checkpoint directory. `tokenizer`: the target's, or None."""
        weights = load_cuda_weights(folder, target.device, str(target.dtype).removeprefix("torch."), target.stored)
        check_vocabulary(folder, weights.config, target.config, target_folder, tokenizer)
        return cls(weights)

    @property
    def generation(self) -> int:
        return self.t5.generation + self.vocabulary.generation

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Cache the cross keys and values of new sources."""
        num_sequences, longest = max(sequences) + 1, max(len(source) for source in sources)
        self.t5.reserve(num_sequences, POSITIONS - 2, 1, longest)
        self.vocabulary.reserve(num_sequences, longest)
        if self.t5.config.num_layers:
            self.t5.admit(sequences, sources)
        else:
            for sequence, output in zip(sequences, encoded, strict=True):
                self.t5.attend_to(sequence, output)
        for sequence, source in zip(sequences, sources, strict=True):
            self.vocabulary.admit(sequence, source)

    def release(self, sequences: Sequence[int]) -> None:
        self.t5.release(sequences)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        """Draft token by token for all sequences; the length is state.draft_tokens, whatever the budget."""
        buffers = self.draft_buffers.of(state)
        draft = buffers.draft
        if not state.max_draft:
            return draft
        # grows in a state's first step alone, which is not captured
        self.t5.reserve_slots(state.capacity + 2)
        buffers.write_inputs(state)
        for index in range(state.max_draft):
            if index:
                self.t5.decode(draft.tokens[:, index - 1 : index], buffers.later[index - 1][:, None])
            else:
                self.t5.decode(buffers.read, buffers.positions, last=True)
            self.vocabulary.draft_into(draft, index, self.t5.head_input(state.batch_size), state)
        return buffers.write_lengths(state)


class ShallowT5DrafterCuda(T5DrafterCuda):
    """Drafts of a ShallowT5Model, on the target's encoder output."""

    @classmethod
    def open(cls, folder: Path, target: T5WeightsCuda, target_folder: Path, tokenizer: Any) -> ShallowT5DrafterCuda:
        """Read a saved drafter for the target that it was made for."""
        model = ShallowT5Model.load(folder, target_folder, with_tables=False)
        config, shared = model.config.as_t5(), model.reads_target_tables
        check_memory(target.device, weight_bytes(config, target.dtype, target.stored, False, own_tables=not shared),
                     f"{folder.name}'s weights", "give weights='bf16', or a smaller drafter")
        if shared:
            tables = {"embedding": target.embedding, "head": target.head}
        else:
            embedding, head = model.own_tables()
            tables = {"embedding": embedding.to(target.device, target.dtype),
                      "head": head.to(target.device, STORED[target.stored])}
        tensors = Tensors(model.state_dict())
        weights = assemble(config, target.dtype, target.stored, False, target.device, tensors.read, tables)
        if model.projection is not None:
            back = model.projection.encoder_output.T.to(target.device)
            weights.tensors["cross_kv"] = (weights.cross_kv.float() @ back).to(target.dtype)
        return cls(weights, model.draft_ids)
