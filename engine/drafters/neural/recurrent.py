"""The Drafter of the LSTM and the CNN: states by position, one compiled call a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.drafters.neural.copy_drafter import CopyDrafter, array
from foredraft.engine.drafters.neural.draft_vocabulary import distributions_of
from foredraft.engine.drafters.neural.drafter_module import DraftModel, Tables
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.models.t5_weights import packed
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.kernels.drafting.recurrent_drafting import Cell, StateCache, draft_numba
from foredraft.kernels.drafting.tree_children import Tree


class RecurrentDrafter(CopyDrafter):
    """Drafts of a DraftModel with a `pointer` and `cell_arrays`."""

    capabilities = replace(CopyDrafter.capabilities, trees=True)

    def __init__(self, model: DraftModel, tables: Tables, stored: str = "fp32"):
        super().__init__(model, tables, stored)
        self.cell = model.cell_arrays(stored)
        self._grow(0, 0)
        self._warm_up()

    def _grow(self, rows: int, slots: int) -> None:
        """Room for B rows of T positions; what was read is forgotten, so that it is read again."""
        layers, U = self.cell.h.shape[2:]
        empty = np.empty((rows, slots, layers, U), np.float32)
        self.cell = self.cell._replace(h=empty, c=np.empty_like(empty))
        self.memory = StateCache(
            np.zeros((rows, slots), np.int64), np.tile(np.arange(-1, slots - 1), (rows, 1)),
            np.empty((rows, slots, self.config.d_model), np.float32), *(np.zeros(rows, np.int64) for _ in range(2)))

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """As CopyDrafter's; the rows have read nothing."""
        super().admit(rows, sources, encoded)
        if max(rows) + 1 > len(self.memory.counts):
            self._grow(max(rows) + 1, self.memory.cached_tokens.shape[1])
        self.memory.counts[list(rows)] = self.memory.nodes[list(rows)] = 0
        self.memory.parents[list(rows)] = np.arange(-1, self.memory.parents.shape[1] - 1)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None, tree: Tree | None = None) -> Draft:
        """One compiled call for the whole batch, on the state's own memory: a chain, or what `tree` says."""
        draft = self.lists.empty_draft(state, PROPOSERS.index(self.name))
        rows, slots = max(state.batch_size, len(self.memory.counts)), state.capacity + state.max_draft
        if rows > len(self.memory.counts) or slots > self.memory.cached_tokens.shape[1]:
            self._grow(rows, max(slots, self.memory.cached_tokens.shape[1]))
        parents, host = np.zeros(draft.tokens.shape, np.int64), state.host
        if tree is not None:
            draft.parents = torch.from_numpy(parents)
        draft_numba(
            host.tokens, host.lengths, state.allowed(budget).numpy(), self.tables.embedding, self.cell, self.memory, self.pointer,
            self.source, self.lists.rows, self.config.head_scale, host.temperature, host.top_k, host.top_p, host.seeds,
            state.end_token, self.confidence.stops(state, budget), chain_tree(state.max_draft) if tree is None else tree,
            draft.tokens.numpy(), parents, draft.lengths.numpy(), *distributions_of(draft))
        return draft


@lru_cache
def chain_tree(length: int) -> Tree:
    """A chain of so many nodes."""
    return Tree(np.arange(length), np.arange(length) + 1, False)


def pack_cell(kind: int, first: Tensor, first_bias: Tensor, rest: list[Tensor], rest_bias: list[Tensor],
            dilations: Sequence[int], states: int, size: int, stored: str) -> Cell:
    """The arrays of kernels/drafting/recurrent_drafting.py's Cell, without room for states; a position keeps `states` of `size`."""
    first, rest = packed(first.detach(), stored), [packed(weight.detach(), stored) for weight in rest]
    stacked = np.stack(rest) if rest else np.zeros((0, *first.shape), first.dtype)
    biases = np.stack([array(bias) for bias in rest_bias]) if rest else np.zeros((0, 1), np.float32)
    empty = np.zeros((0, 0, states, size), np.float32)
    return Cell(kind, first, array(first_bias), stacked, biases, np.array(dilations, np.int64), empty, empty)
