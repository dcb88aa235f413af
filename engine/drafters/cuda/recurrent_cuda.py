"""The LSTM and the CNN drafter on a device: engine/drafters/neural/recurrent.py's, inside the captured round.

An id takes five launches beside those of its cell: one a layer of the LSTM, one and one a layer of the CNN. What
engine/drafters/cuda/t5_drafter_cuda.py says of drafts holds here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.engine.drafters.cuda.draft_buffers import BuffersByState
from foredraft.engine.drafters.cuda.draft_vocabulary_cuda import DraftVocabularyCuda
from foredraft.engine.drafters.neural.cnn import CNNModel
from foredraft.engine.drafters.neural.copy_module import MATCHED
from foredraft.engine.drafters.neural.drafter_module import DraftModel, rms_norm
from foredraft.engine.drafters.neural.lstm import LSTMModel
from foredraft.engine.models.device_memory import Layout, check_memory, layout_bytes
from foredraft.engine.models.t5_cuda_weights import STORED, T5WeightsCuda
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import PROPOSERS, DecodeState, Draft
from foredraft.kernels.drafting.causal_conv_triton import convolution_triton
from foredraft.kernels.drafting.lstm_cell_triton import cell_triton, mix_triton
from foredraft.kernels.drafting.vocabulary_head_triton import CopyScores
from foredraft.kernels.model.cross_attention_triton import (
    PAGE,
    SourceScores,
    fused_cross_attention_triton,
    page_bucket,
    work_size,
)

# Positions that there is room for from the first request on, and steps in which it grows.
POSITIONS, SLOTS = 192, 64


class RecurrentDrafterCuda(Drafter):
    """Drafts of a DraftModel with a `pointer`, on the target's encoder output, embedding and head.

    `generation` counts its buffers' changes of place. States are kept by position, so that a rejection costs nothing.
    """

    name: ClassVar[str]
    model_class: ClassVar[type[DraftModel]]
    # whether the last layer's states are normed where they are read
    normed: ClassVar[bool]

    def __init__(self, model: DraftModel, embedding: Tensor, head: Tensor, stored: str):
        """`stored`, one of cuda_weights.STORED: its own matrices."""
        self.device, self.kind, self.config = embedding.device, STORED[stored], model.config
        c, pointer, self.embedding = model.config, model.pointer, embedding
        check_memory(self.device, own_bytes(model, self.kind), f"the {self.name} drafter's weights",
                     "give weights='bf16', or a smaller drafter")
        self.lists = DraftVocabularyCuda(head, model.draft_ids, copies=True)
        self.turns = BuffersByState(c.vocab_size, PROPOSERS.index(self.name))
        U, inner, C = c.hidden_size, c.num_heads * c.d_kv, c.d_model
        self._take_cell(model)
        query, matrix = pointer.query.weight, self._matrix
        self.query = (matrix(query[:, :U]), None, matrix(query[:, U:].reshape(inner, len(MATCHED), C).transpose(0, 1)),
                      self._vector(pointer.query.bias))
        mixed = torch.cat((pointer.inner.weight, pointer.gain.weight))
        self.inner = (matrix(mixed[:, :U]), matrix(mixed[:, U : U + inner]), matrix(mixed[:, U + inner :])[None],
                      self._vector(torch.cat((pointer.inner.bias, pointer.gain.bias))))
        self.outer = (None, matrix(pointer.outer.weight), None, None)
        # sources are read by the module itself
        self.pointer = pointer.eval().to(self.device)
        self.rows = self.pages = self.slots = self.bucket = self._grown = 0

    def _take_cell(self, model: DraftModel) -> None:
        """Keep the cell's weights as its kernels read them."""
        raise NotImplementedError

    def _states(self, rows: int, slots: int) -> Layout:
        """What is kept by position."""
        raise NotImplementedError

    @property
    def top(self) -> Tensor:
        """The last layer's states [B, T, U], which the pointer reads."""
        raise NotImplementedError

    def _read(self, ids: Tensor, at: Tensor, texts: tuple) -> None:
        """Take ids [B] in at their positions; texts: where mix_triton finds them too."""
        raise NotImplementedError

    def _matrix(self, weight: Tensor) -> Tensor:
        # laid out before it goes there, which would take its memory twice
        return weight.detach().to(self.kind).contiguous().to(self.device)

    def _vector(self, *biases: Tensor) -> Tensor:
        """Biases added up, in float32."""
        return torch.stack([bias.detach().float() for bias in biases]).sum(0).to(self.device)

    @classmethod
    def open(cls, folder: Path, target: T5WeightsCuda, target_folder: Path, tokenizer: Any) -> RecurrentDrafterCuda:
        """A saved drafter, for the target it was made for."""
        model = cls.model_class.load(folder, target_folder, with_tables=False)
        if model.config.shared_embeddings:
            return cls(model, target.embedding, target.head, target.stored)
        tables = (model.embedding, target.dtype), (model.head, STORED[target.stored])
        check_memory(target.device, sum(table.numel() * kind.itemsize for table, kind in tables),
                     f"{folder.name}'s embedding and head", "give dtype='bfloat16' and weights='bf16'")
        return cls(model, *(table.detach().to(target.device, kind) for table, kind in tables), target.stored)

    @property
    def generation(self) -> int:
        return self._grown + self.lists.generation

    def _shapes(self, rows: int, pages: int) -> Layout:
        c, kind = self.config, self.kind
        inner = c.num_heads * c.d_kv
        return {
            "pages_k": ((rows * pages, c.num_heads, PAGE, c.d_kv), kind),
            "pages_v": ((rows * pages, c.num_heads, PAGE, c.d_kv), kind),
            "table": ((rows, pages), torch.int64), "sources": ((rows,), torch.int64),
            "ids": ((rows, pages * PAGE), torch.int64), "scores": ((rows, pages * PAGE), torch.float32),
            "top": ((rows,), torch.float32), "total": ((rows,), torch.float32), "gain": ((rows,), torch.float32),
            "q": ((rows, inner), kind), "context": ((rows, inner), kind), "active": ((rows, c.d_ff), kind),
            "y": ((rows, c.d_model), kind), "arrived": ((rows * c.num_heads,), torch.int32),
            "work": ((work_size(rows, 1, c.num_heads, pages, c.d_kv),), torch.float32),
        }

    def _make(self, layout: Layout, rows: int) -> dict[str, Tensor]:
        check_memory(self.device, layout_bytes(layout), f"the {self.name} drafter's buffers for {rows} rows",
                     "lower batch_size, max_new_tokens or max_source")
        self._grown += 1
        return {name: torch.zeros(shape, dtype=kind, device=self.device) for name, (shape, kind) in layout.items()}

    def reserve(self, rows: int, source: int) -> None:
        """Room for B rows with sources of S ids; growing forgets every row."""
        self.bucket = pages = page_bucket(source)
        self.lists.reserve(rows, source)
        if rows > self.rows or pages > self.pages:
            rows, pages, slots = max(rows, self.rows), max(pages, self.pages), max(self.slots, POSITIONS)
            # no room that is not there, should the memory not suffice
            self.rows = 0
            self.buffers = self._make(self._shapes(rows, pages), rows)
            self.buffers["table"].copy_(torch.arange(rows * pages).view(rows, pages))
            self.states = self._make(self._states(rows, slots), rows)
            self.rows, self.pages, self.slots = rows, pages, slots

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Keys and values of the sources, n of [S_i] int64 with the target's encoder output [S_i, C], for the rows."""
        self.reserve(max(rows) + 1, max(len(source) for source in sources))
        b, H, D = self.buffers, self.config.num_heads, self.config.d_kv
        for row, source, output in zip(rows, sources, encoded, strict=True):
            S, used = len(source), -(-len(source) // PAGE)
            ids = source.to(self.device)
            embedded = rms_norm(self.embedding[ids].float())
            for name, values in zip(("pages_k", "pages_v"), self.pointer.source(output[None], embedded[None]), strict=True):
                paged = F.pad(values[0], (0, 0, 0, used * PAGE - S)).view(used, PAGE, H, D).transpose(1, 2)
                b[name].index_copy_(0, b["table"][row, :used], paged.to(self.kind))
            b["ids"][row, :S] = ids
            b["sources"][row].fill_(S)
            self.lists.admit(row, source)

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.buffers["sources"][row].fill_(0)

    def draft(self, state: DecodeState, budget: None = None) -> Draft:
        turn = self.turns.of(state)
        draft = turn.draft
        if not state.max_draft:
            return draft
        if state.capacity + 1 > self.slots:
            # only ever in a state's first round, which is not captured
            slots = -(-(state.capacity + 1) // SLOTS) * SLOTS
            self.states = self._make(self._states(self.rows, slots), self.rows)
            self.slots = slots
        texts = (self.embedding, state.tokens, state.lengths, draft.tokens)
        turn.begin(state)
        self._read(turn.read[:, 0], turn.places[:, 0], texts)
        for place in range(state.max_draft):
            ids = draft.tokens[:, place - 1] if place else turn.read[:, 1]
            at = turn.later[place - 1] if place else turn.places[:, 1]
            self._read(ids, at, texts)
            y, pointed = self._look(at, texts)
            self.lists.draft_into(draft, place, y, state, pointed)
        return turn.end(state)

    def _look(self, at: Tensor, texts: tuple) -> tuple[Tensor, CopyScores]:
        """The head's inputs [B, C] after the ids at `at`, and what their pointer raises."""
        B, c, top = len(at), self.config, self.top
        b = {name: buffer if name in ("pages_k", "pages_v", "work", "arrived") else buffer[:B]
             for name, buffer in self.buffers.items()}
        mix_triton(at, top, None, *texts, *self.query, 1.0, b["q"], None, self.normed)
        fused_cross_attention_triton(
            b["q"].view(B, c.num_heads, c.d_kv), b["pages_k"], b["pages_v"], b["table"][:, : self.bucket], b["sources"],
            b["context"], b["work"], b["arrived"], SourceScores(b["scores"], b["top"], b["total"]))
        mix_triton(at, top, b["context"], *texts, *self.inner, 1.0, b["active"], b["gain"], self.normed)
        mix_triton(at, None, b["active"], None, None, None, None, *self.outer, c.head_scale, b["y"], None)
        return b["y"], CopyScores(b["ids"], b["sources"], b["scores"], b["top"], b["total"], b["gain"])


class LSTMDrafterCuda(RecurrentDrafterCuda):
    """Drafts of an LSTMModel; h in the type of the weights, c in float32."""

    name, model_class, normed = "lstm", LSTMModel, False

    def _take_cell(self, model: LSTMModel) -> None:
        self.cells = [(self._matrix(x), self._matrix(h), self._vector(*biases)) for x, h, *biases in model.cell.all_weights]

    def _states(self, rows: int, slots: int) -> Layout:
        shape = (self.config.num_layers, rows, slots, self.config.hidden_size)
        return {"h": (shape, self.kind), "c": (shape, torch.float32)}

    @property
    def top(self) -> Tensor:
        return self.states["h"][-1]

    def _read(self, ids: Tensor, at: Tensor, texts: tuple) -> None:
        h, c = self.states["h"], self.states["c"]
        for layer, weights in enumerate(self.cells):
            below = h[layer - 1] if layer else self.embedding
            cell_triton(None if layer else ids, at, below, *weights, h[layer], c[layer])


class CNNDrafterCuda(RecurrentDrafterCuda):
    """Drafts of a CNNModel; each layer's inputs, not normed, in float32."""

    name, model_class, normed = "cnn", CNNModel, True

    def _take_cell(self, model: CNNModel) -> None:
        self.enter = (None, None, self._matrix(model.enter.weight)[None], self._vector(model.enter.bias))
        self.layers = [(self._matrix(layer.weight.permute(2, 0, 1)), self._vector(layer.bias), dilation)
                       for layer, dilation in zip(model.convolutions, model.config.dilations, strict=True)]

    def _states(self, rows: int, slots: int) -> Layout:
        return {"y": ((len(self.layers) + 1, rows, slots, self.config.hidden_size), torch.float32)}

    @property
    def top(self) -> Tensor:
        return self.states["y"][-1]

    def _read(self, ids: Tensor, at: Tensor, texts: tuple) -> None:
        y = self.states["y"]
        mix_triton(at, None, None, *texts, *self.enter, 1.0, y[0][: len(at)], None)
        for layer, weights in enumerate(self.layers):
            convolution_triton(at, y[layer], *weights, y[layer + 1])


def own_bytes(model: DraftModel, kind: torch.dtype) -> int:
    """At most, without embedding and head: its pointer as it is, and every matrix as kernels read it."""
    as_read = sum(weight.numel() * (kind.itemsize if weight.dim() > 1 else 4)
                  for name, weight in model.named_parameters() if name not in ("embedding", "head"))
    return as_read + sum(weight.nbytes for weight in model.pointer.parameters())
