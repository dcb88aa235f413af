"""The Drafter of the LSTM and the CNN: packed weights, states by position, one compiled call a round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.cache import KVCache
from foredraft.engine.neural import DraftModel, Tables, rms_norm, stored_as
from foredraft.engine.shortlists import Shortlists
from foredraft.engine.state import ORIGINS, DecodeState, Draft
from foredraft.engine.t5_weights import T5Weights, packed
from foredraft.kernels.pointer import Pointer, Source
from foredraft.kernels.recurrent import Cell, Memory, draft_numba


class RecurrentDrafter:
    """Drafts of a DraftModel with a `pointer` and `cell_arrays`: greedy rows as point masses, others with their laws."""

    name: ClassVar[str]
    model_class: ClassVar[type[DraftModel]]

    def __init__(self, model: DraftModel, tables: Tables, stored: str = "fp32"):
        """`stored`, one of t5_weights.STORED: its own matrices."""
        self.model, self.tables = model.eval(), tables
        self.config, pointer = model.config, model.pointer
        self.lists = Shortlists(tables.head, self.config.vocab_size, model.draft_ids.numpy(), copies=True)
        self.keys = KVCache(1, pointer.heads, pointer.d_kv)
        query, inner, outer = (packed(layer.weight.detach(), stored)
                               for layer in (pointer.query, pointer.inner, pointer.outer))
        self.pointer = Pointer(query, array(pointer.query.bias), inner, array(pointer.inner.bias), outer,
                               array(pointer.gain.weight)[0], array(pointer.gain.bias))
        self.cell = model.cell_arrays(stored)
        self._grow(0, 0)
        self._warm_up()

    @classmethod
    def open(cls, folder: Path, target: T5Weights, target_folder: Path, tokenizer: Any) -> RecurrentDrafter:
        """A saved drafter, for the target it was made for."""
        model = cls.model_class.load(folder, target_folder, with_tables=False)
        return cls(model, Tables.of(model, target), stored_as(folder, target))

    def _grow(self, rows: int, slots: int) -> None:
        """Room for B rows of T positions; what was read is forgotten, so that it is read again."""
        layers, U = self.cell.h.shape[2:]
        empty = np.empty((rows, slots, layers, U), np.float32)
        self.cell = self.cell._replace(h=empty, c=np.empty_like(empty))
        self.memory = Memory(np.zeros((rows, slots), np.int64), np.zeros(rows, np.int64),
                             np.empty((rows, slots, self.config.d_model), np.float32))

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Keys and values of the sources, n of [S_i] int64 with the target's encoder output [S_i, C], for the rows."""
        most, longest = max(rows) + 1, max(len(source) for source in sources)
        self.keys.reserve(most, 0, longest)
        self.lists.reserve(most, longest)
        if most > len(self.memory.counts):
            self._grow(most, self.memory.fed.shape[1])
        H, D = self.keys.heads, self.keys.head_size
        with torch.inference_mode():
            for row, source, output in zip(rows, sources, encoded, strict=True):
                k, v = self.model.pointer.source(output[None], rms_norm(self.tables.embed(source))[None])
                self.keys.hold(row, len(source))
                self.keys.write_source(0, row, k.view(-1, H, D), v.view(-1, H, D))
                self.lists.admit(row, source)
                self.memory.counts[row] = 0

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.keys.release(row)

    def draft(self, state: DecodeState) -> Draft:
        """One compiled call for the whole batch, on the state's own memory."""
        draft = self.lists.empty_draft(state, ORIGINS.index(self.name))
        rows, slots = max(state.rows, len(self.memory.counts)), state.capacity + state.max_draft
        if rows > len(self.memory.counts) or slots > self.memory.fed.shape[1]:
            self._grow(rows, max(slots, self.memory.fed.shape[1]))
        keys = self.keys
        logits, lse = (_NO_LAW, _NO_LSE) if draft.logits is None else (draft.logits.numpy(), draft.lse.numpy())
        draft_numba(
            state.tokens.numpy(), state.lengths.numpy(), state.allowed().numpy(), self.tables.embedding, self.cell,
            self.memory, self.pointer, Source(keys.pages_k[0], keys.pages_v[0], keys.table, keys.sources), self.lists.rows,
            self.config.head_scale, state.temperature.numpy(), state.top_k.numpy(), state.top_p.numpy(),
            state.seeds.numpy(), state.end_token, draft.tokens.numpy(), draft.lengths.numpy(), logits, lse)
        return draft

    def _warm_up(self) -> None:
        """Compile, or read the compiled code, before the first request."""
        one = torch.ones(1, dtype=torch.int64)
        state = DecodeState(limits=one + 1, draft_tokens=one, temperature=torch.zeros(1), top_k=one * 0,
                            top_p=torch.ones(1), seeds=one, start_token=0, end_token=1, width=1)
        self.admit([0], [one], [torch.zeros(1, self.config.d_model)])
        self.draft(state)
        self.release([0])


_NO_LAW, _NO_LSE = np.zeros((0, 0, 0), np.float32), np.zeros((0, 0))


def array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().numpy())


def cell_of(kind: int, first: Tensor, first_bias: Tensor, rest: list[Tensor], rest_bias: list[Tensor],
            dilations: Sequence[int], states: int, size: int, stored: str) -> Cell:
    """The arrays of kernels/recurrent.py's Cell, without room for states; a position keeps `states` of `size`."""
    first, rest = packed(first.detach(), stored), [packed(weight.detach(), stored) for weight in rest]
    stacked = np.stack(rest) if rest else np.zeros((0, *first.shape), first.dtype)
    biases = np.stack([array(bias) for bias in rest_bias]) if rest else np.zeros((0, 1), np.float32)
    empty = np.zeros((0, 0, states, size), np.float32)
    return Cell(kind, first, array(first_bias), stacked, biases, np.array(dilations, np.int64), empty, empty)
