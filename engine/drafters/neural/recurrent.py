"""The drafter of the LSTM and the CNN: states cached by position, one compiled call a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.drafters.neural.copy_drafter import CopyDrafter, as_array
from foredraft.engine.drafters.neural.copy_module import CopyModel
from foredraft.engine.drafters.neural.draft_vocabulary import distributions_of
from foredraft.engine.drafters.neural.drafter_module import Tables
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.models.t5_weights import packed
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.kernels.drafting.recurrent_drafting import Cell, StateCache, draft_numba
from foredraft.kernels.drafting.tree_children import Tree


class RecurrentDrafter(CopyDrafter):
    """Drafts of a CopyModel that has `cell_arrays(stored)`, its packed network as a Cell."""

    capabilities = replace(CopyDrafter.capabilities, trees=True)

    def __init__(self, model: CopyModel, tables: Tables, stored: str = "fp32"):
        super().__init__(model, tables, stored)
        self.cell = model.cell_arrays(stored)
        self._grow(0, 0)
        self._warm_up()

    def _grow(self, num_sequences: int, slots: int) -> None:
        """Make room for B sequences of T positions; what was read is forgotten, so that it is read again."""
        B, (layers, U) = num_sequences, self.cell.h.shape[2:]
        empty = np.empty((B, slots, layers, U), np.float32)
        self.cell = self.cell._replace(h=empty, c=np.empty_like(empty))
        self.states = StateCache(
            np.zeros((B, slots), np.int64), np.tile(np.arange(-1, slots - 1), (B, 1)),
            np.empty((B, slots, self.config.d_model), np.float32), *(np.zeros(B, np.int64) for _ in range(2)))

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """As CopyDrafter's, and nothing is cached yet."""
        super().admit(sequences, sources, encoded)
        if max(sequences) + 1 > len(self.states.counts):
            self._grow(max(sequences) + 1, self.states.cached_tokens.shape[1])
        self.states.counts[list(sequences)] = self.states.nodes[list(sequences)] = 0
        self.states.parents[list(sequences)] = np.arange(-1, self.states.parents.shape[1] - 1)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None, tree: Tree | None = None) -> Draft:
        """Draft for all sequences in one compiled call, without branches or as `tree` says."""
        draft = self.vocabulary.empty_draft(state, PROPOSERS.index(self.name))
        capacity, slots = max(state.batch_size, len(self.states.counts)), state.capacity + state.max_draft
        if capacity > len(self.states.counts) or slots > self.states.cached_tokens.shape[1]:
            self._grow(capacity, max(slots, self.states.cached_tokens.shape[1]))
        parents, host = np.zeros(draft.tokens.shape, np.int64), state.host
        if tree is not None:
            draft.parents = torch.from_numpy(parents)
        draft_numba(
            host.tokens, host.lengths, state.allowed(budget).numpy(), self.tables.embedding, self.cell, self.states,
            self.copy_weights, self.source, self.vocabulary.heads, self.config.head_scale, host.temperature, host.top_k,
            host.top_p, host.seeds, state.end_token, self.confidence.stop_rule(state, budget),
            chain_tree(state.max_draft) if tree is None else tree, draft.tokens.numpy(), parents, draft.lengths.numpy(),
            *distributions_of(draft))
        return draft


@lru_cache
def chain_tree(length: int) -> Tree:
    """A tree without branches."""
    return Tree(np.arange(length), np.arange(length) + 1, False)


def pack_cell(kind: int, first: Tensor, first_bias: Tensor, rest: list[Tensor], rest_bias: list[Tensor],
              dilations: Sequence[int], layers: int, state_size: int, stored: str) -> Cell:
    """Pack a network as kernels/drafting/recurrent_drafting.py's Cell, with `layers` states of `state_size` by position and
    no room for positions yet."""
    first, rest = packed(first.detach(), stored), [packed(weight.detach(), stored) for weight in rest]
    stacked = np.stack(rest) if rest else np.zeros((0, *first.shape), first.dtype)
    biases = np.stack([as_array(bias) for bias in rest_bias]) if rest else np.zeros((0, 1), np.float32)
    empty = np.zeros((0, 0, layers, state_size), np.float32)
    return Cell(kind, first, as_array(first_bias), stacked, biases, np.array(dilations, np.int64), empty, empty)
