"""T5 drafters on a device: engine/drafters/neural/t5_drafter.py's, one row a pass through the target's kernels, inside the captured round.

Drafts are those of the CPU's drafter: the same ids where rows are greedy, ties and roundings apart; where they are sampled,
draws from the same distribution, in another order of ids. It is asked in every round, for it reads the last two committed ids alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foredraft.engine.drafters.cuda.draft_buffers import BuffersByState
from foredraft.engine.drafters.cuda.draft_vocabulary_cuda import DraftVocabularyCuda
from foredraft.engine.drafters.neural.t5_drafter import ShallowT5Model, check_vocabulary
from foredraft.engine.models.checkpoint import Tensors
from foredraft.engine.models.device_memory import check_memory
from foredraft.engine.models.t5_cuda import T5Cuda
from foredraft.engine.models.t5_cuda_weights import STORED, T5WeightsCuda, assemble, load_cuda_weights, weight_bytes
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import PROPOSERS, DecodeState, Draft

# Positions that there is room for from the first request on.
POSITIONS = 192


class T5DrafterCuda(Drafter):
    """Drafts of a T5 over its own encoder's output or the target's. `generation` counts its buffers' changes of place."""

    name = "t5"

    def __init__(self, weights: T5WeightsCuda, ids: Tensor | None = None):
        """`ids`: the ids it may draft beside those of the source, most frequent first; none: all."""
        self.t5 = T5Cuda(weights)
        self.lists = DraftVocabularyCuda(weights.head, torch.zeros(0) if ids is None else ids, copies=False)
        self.turns = BuffersByState(weights.config.vocab_size, PROPOSERS.index("t5"))

    @classmethod
    def open(cls, folder: Path, target: T5WeightsCuda, target_folder: Path, tokenizer: Any) -> T5DrafterCuda:
        """A T5 checkpoint directory (form 1). `tokenizer`: the target's, or None."""
        weights = load_cuda_weights(folder, target.device, str(target.dtype).removeprefix("torch."), target.stored)
        check_vocabulary(folder, weights.config, target.config, target_folder, tokenizer)
        return cls(weights)

    @property
    def generation(self) -> int:
        return self.t5.generation + self.lists.generation

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Keys and values of the sources, n of [S_i] int64; a T5 without an encoder takes the target's output for them."""
        most, longest = max(rows) + 1, max(len(source) for source in sources)
        self.t5.reserve(most, POSITIONS - 2, 1, longest)
        self.lists.reserve(most, longest)
        if self.t5.config.num_layers:
            self.t5.admit(rows, sources)
        else:
            for row, output in zip(rows, encoded, strict=True):
                self.t5.attend_to(row, output)
        for row, source in zip(rows, sources, strict=True):
            self.lists.admit(row, source)

    def release(self, rows: Sequence[int]) -> None:
        self.t5.release(rows)

    def draft(self, state: DecodeState, budget: None = None) -> Draft:
        turn = self.turns.of(state)
        draft = turn.draft
        if not state.max_draft:
            return draft
        # only ever in a state's first round, which is not captured
        self.t5.reserve_slots(state.capacity + 2)
        turn.begin(state)
        for place in range(state.max_draft):
            if place:
                self.t5.decode(draft.tokens[:, place - 1 : place], turn.later[place - 1][:, None])
            else:
                self.t5.decode(turn.read, turn.places, last=True)
            self.lists.draft_into(draft, place, self.t5.head_input(state.batch_size), state)
        return turn.end(state)


class ShallowT5DrafterCuda(T5DrafterCuda):
    """Drafts of a ShallowT5Model: on the target's encoder output, embedding and head."""

    @classmethod
    def open(cls, folder: Path, target: T5WeightsCuda, target_folder: Path, tokenizer: Any) -> ShallowT5DrafterCuda:
        model = ShallowT5Model.load(folder, target_folder, with_tables=False)
        c, shared = model.config.as_t5(), model.config.shared_embeddings
        check_memory(target.device, weight_bytes(c, target.dtype, target.stored, False, own_tables=not shared),
                     f"{folder.name}'s weights", "give weights='bf16', or a smaller drafter")
        if shared:
            tables = {"embedding": target.embedding, "head": target.head}
        else:
            tables = {"embedding": model.embedding.detach().to(target.device, target.dtype),
                      "head": model.head.detach().to(target.device, STORED[target.stored])}
        tensors = Tensors(model.state_dict())
        weights = assemble(c, target.dtype, target.stored, False, target.device,
                           tensors.read, tables)
        return cls(weights, model.draft_ids)
