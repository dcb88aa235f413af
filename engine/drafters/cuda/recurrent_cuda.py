"""The LSTM and the CNN drafter on a device (engine/drafters/neural/recurrent.py), inside the captured step.

A draft token takes five launches beside those of its network: one a layer of the LSTM; one, and one a layer, of the CNN.
Greedy and sampled drafts relate to the CPU's as t5_drafter_cuda.py says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.engine.drafters.cuda.draft_buffers import DraftBuffers, PerState
from foredraft.engine.drafters.cuda.draft_vocabulary_cuda import DraftVocabularyCuda
from foredraft.engine.drafters.neural.cnn import CNNModel
from foredraft.engine.drafters.neural.copy_module import MATCH_SCALES, CopyModel
from foredraft.engine.drafters.neural.drafter_module import rms_norm
from foredraft.engine.drafters.neural.lstm import LSTMModel
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.models.device_memory import Layout, check_memory, layout_bytes
from foredraft.engine.models.t5_cuda_weights import STORED, T5WeightsCuda
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState, Draft, DraftBudget
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

# Decoder positions that are allocated for the first request, and the multiple in which they grow.
POSITIONS, SLOTS = 192, 64


class RecurrentDrafterCuda(Drafter):
    """Drafts of a CopyModel. States are cached by position.

    A subclass names its `model_class` and writes `_take_network`, `_state_layout`, `last_states` and `_read`.

    Parameters
    ----------
    model : CopyModel
    embedding, head : Tensor [V, C]
        On the device.
    stored : str
        Storage of the model's own matrices, a key of t5_cuda_weights.STORED.
    """

    model_class: ClassVar[type[CopyModel]]
    # whether the last layer's states are RMS-normed where they are read
    normed: ClassVar[bool]

    def __init__(self, model: CopyModel, embedding: Tensor, head: Tensor, stored: str):
        self.device, self.kind, self.config = embedding.device, STORED[stored], model.config
        c, copy, self.embedding = model.config, model.pointer, embedding
        check_memory(self.device, own_bytes(model, self.kind), f"the {self.name} drafter's weights",
                     "give weights='bf16', or a smaller drafter")
        self.vocabulary = DraftVocabularyCuda(head, model.draft_ids, copies=True)
        self.draft_buffers = PerState(lambda state: DraftBuffers(state, c.vocab_size, PROPOSERS.index(self.name)))
        U, inner, C = c.hidden_size, c.num_heads * c.d_kv, c.d_model
        self._take_network(model)
        # each layer as mix_triton reads it: weights of the states, of other inputs, of the latest embeddings; bias
        query, matrix = copy.query.weight, self._matrix
        self.query = (matrix(query[:, :U]), None, matrix(query[:, U:].reshape(inner, len(MATCH_SCALES), C).transpose(0, 1)),
                      self._vector(copy.query.bias))
        mixed = torch.cat((copy.inner.weight, copy.gain.weight))
        self.inner = (matrix(mixed[:, :U]), matrix(mixed[:, U : U + inner]), matrix(mixed[:, U + inner :])[None],
                      self._vector(torch.cat((copy.inner.bias, copy.gain.bias))))
        self.outer = (None, matrix(copy.outer.weight), None, None)
        # the module itself reads the sources
        self.copy_attention = copy.eval().to(self.device)
        self.num_sequences = self.pages = self.slots = self.bucket = self._moves = 0

    def _take_network(self, model: CopyModel) -> None:
        """Keep the network's weights as its kernels read them."""
        raise NotImplementedError

    def _state_layout(self, B: int, slots: int) -> Layout:
        """What is cached by position."""
        raise NotImplementedError

    @property
    def last_states(self) -> Tensor:
        """The last layer's states [B, T, U]."""
        raise NotImplementedError

    def _read(self, tokens: Tensor, positions: Tensor, texts: tuple) -> None:
        """Read tokens [B] at their positions [B]; texts: (embedding, committed tokens, lengths, draft tokens)."""
        raise NotImplementedError

    def _matrix(self, weight: Tensor) -> Tensor:
        # contiguous before it goes to the device, which would need its memory twice
        return weight.detach().to(self.kind).contiguous().to(self.device)

    def _vector(self, *biases: Tensor) -> Tensor:
        """The sum of biases, float32."""
        return torch.stack([bias.detach().float() for bias in biases]).sum(0).to(self.device)

    @classmethod
    def open(cls, folder: Path, target: T5WeightsCuda, target_folder: Path, tokenizer: Any) -> RecurrentDrafterCuda:
        """Read a saved drafter for the target that it was made for."""
        model = cls.model_class.load(folder, target_folder, with_tables=False)
        if model.reads_target_tables:
            return cls(model, target.embedding, target.head, target.stored)
        embedding, head = model.own_tables()
        tables = (embedding, target.dtype), (head, STORED[target.stored])
        check_memory(target.device, sum(table.numel() * kind.itemsize for table, kind in tables),
                     f"{folder.name}'s embedding and head", "give dtype='bfloat16' and weights='bf16'")
        return cls(model, *(table.to(target.device, kind) for table, kind in tables), target.stored)

    @property
    def generation(self) -> int:
        return self._moves + self.vocabulary.generation

    def _layout(self, B: int, pages: int) -> Layout:
        c, kind = self.config, self.kind
        inner = c.num_heads * c.d_kv
        return {
            "pages_k": ((B * pages, c.num_heads, PAGE, c.d_kv), kind),
            "pages_v": ((B * pages, c.num_heads, PAGE, c.d_kv), kind),
            "table": ((B, pages), torch.int64), "sources": ((B,), torch.int64),
            "source_tokens": ((B, pages * PAGE), torch.int64), "scores": ((B, pages * PAGE), torch.float32),
            "top": ((B,), torch.float32), "total": ((B,), torch.float32), "gain": ((B,), torch.float32),
            "q": ((B, inner), kind), "context": ((B, inner), kind), "active": ((B, c.d_ff), kind),
            "y": ((B, c.d_model), kind), "arrived": ((B * c.num_heads,), torch.int32),
            "work": ((work_size(B, 1, c.num_heads, pages, c.d_kv),), torch.float32),
        }

    def _allocate(self, layout: Layout, B: int) -> dict[str, Tensor]:
        check_memory(self.device, layout_bytes(layout), f"the {self.name} drafter's buffers for {B} sequences",
                     "lower batch_size, max_new_tokens or max_source")
        self._moves += 1
        return {name: torch.zeros(shape, dtype=kind, device=self.device) for name, (shape, kind) in layout.items()}

    def reserve(self, num_sequences: int, source: int) -> None:
        """Make room for B sequences with sources of S tokens; growing forgets every sequence."""
        self.bucket = pages = page_bucket(source)
        self.vocabulary.reserve(num_sequences, source)
        if num_sequences > self.num_sequences or pages > self.pages:
            B, pages, slots = max(num_sequences, self.num_sequences), max(pages, self.pages), max(self.slots, POSITIONS)
            # 0 until both allocations have succeeded
            self.num_sequences = 0
            self.buffers = self._allocate(self._layout(B, pages), B)
            self.buffers["table"].copy_(torch.arange(B * pages).view(B, pages))
            self.states = self._allocate(self._state_layout(B, slots), B)
            self.num_sequences, self.pages, self.slots = B, pages, slots

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Cache the copy attention's keys and values of new sources."""
        self.reserve(max(sequences) + 1, max(len(source) for source in sources))
        b, H, D = self.buffers, self.config.num_heads, self.config.d_kv
        for sequence, source, output in zip(sequences, sources, encoded, strict=True):
            S, used = len(source), -(-len(source) // PAGE)
            tokens = source.to(self.device)
            embedded = rms_norm(self.embedding[tokens].float())
            keys_values = self.copy_attention.source(output[None], embedded[None])
            for name, values in zip(("pages_k", "pages_v"), keys_values, strict=True):
                paged = F.pad(values[0], (0, 0, 0, used * PAGE - S)).view(used, PAGE, H, D).transpose(1, 2)
                b[name].index_copy_(0, b["table"][sequence, :used], paged.to(self.kind))
            b["source_tokens"][sequence, :S] = tokens
            b["sources"][sequence].fill_(S)
            self.vocabulary.admit(sequence, source)

    def release(self, sequences: Sequence[int]) -> None:
        for sequence in sequences:
            self.buffers["sources"][sequence].fill_(0)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        """Draft token by token for all sequences; the length is state.draft_tokens, whatever the budget."""
        buffers = self.draft_buffers.of(state)
        draft = buffers.draft
        if not state.max_draft:
            return draft
        if state.capacity + 1 > self.slots:
            # in a state's first step alone, which is not captured
            slots = -(-(state.capacity + 1) // SLOTS) * SLOTS
            self.states = self._allocate(self._state_layout(self.num_sequences, slots), self.num_sequences)
            self.slots = slots
        texts = (self.embedding, state.tokens, state.lengths, draft.tokens)
        buffers.write_inputs(state)
        self._read(buffers.read[:, 0], buffers.positions[:, 0], texts)
        for index in range(state.max_draft):
            tokens = draft.tokens[:, index - 1] if index else buffers.read[:, 1]
            positions = buffers.later[index - 1] if index else buffers.positions[:, 1]
            self._read(tokens, positions, texts)
            y, copy = self._attend(positions, texts)
            self.vocabulary.draft_into(draft, index, y, state, copy)
        return buffers.write_lengths(state)

    def _attend(self, positions: Tensor, texts: tuple) -> tuple[Tensor, CopyScores]:
        """Copy attention after the tokens at `positions`: the head's inputs [B, C], and what copying adds."""
        B, c, states = len(positions), self.config, self.last_states
        b = {name: buffer if name in ("pages_k", "pages_v", "work", "arrived") else buffer[:B]
             for name, buffer in self.buffers.items()}
        mix_triton(positions, states, None, *texts, *self.query, 1.0, b["q"], None, self.normed)
        fused_cross_attention_triton(
            b["q"].view(B, c.num_heads, c.d_kv), b["pages_k"], b["pages_v"], b["table"][:, : self.bucket], b["sources"],
            b["context"], b["work"], b["arrived"], SourceScores(b["scores"], b["top"], b["total"]))
        mix_triton(positions, states, b["context"], *texts, *self.inner, 1.0, b["active"], b["gain"], self.normed)
        mix_triton(positions, None, b["active"], None, None, None, None, *self.outer, c.head_scale, b["y"], None)
        return b["y"], CopyScores(b["source_tokens"], b["sources"], b["scores"], b["top"], b["total"], b["gain"])


class LSTMDrafterCuda(RecurrentDrafterCuda):
    """Drafts of an LSTMModel; h is cached in the weights' type, c in float32."""

    name, model_class, normed = "lstm", LSTMModel, False

    def _take_network(self, model: LSTMModel) -> None:
        self.cells = [(self._matrix(x), self._matrix(h), self._vector(*biases)) for x, h, *biases in model.cell.all_weights]

    def _state_layout(self, B: int, slots: int) -> Layout:
        shape = (self.config.num_layers, B, slots, self.config.hidden_size)
        return {"h": (shape, self.kind), "c": (shape, torch.float32)}

    @property
    def last_states(self) -> Tensor:
        return self.states["h"][-1]

    def _read(self, tokens: Tensor, positions: Tensor, texts: tuple) -> None:
        h, c = self.states["h"], self.states["c"]
        for layer, weights in enumerate(self.cells):
            below = h[layer - 1] if layer else self.embedding
            cell_triton(None if layer else tokens, positions, below, *weights, h[layer], c[layer])


class CNNDrafterCuda(RecurrentDrafterCuda):
    """Drafts of a CNNModel; the inputs of each layer are cached before their norm, in float32."""

    name, model_class, normed = "cnn", CNNModel, True

    def _take_network(self, model: CNNModel) -> None:
        self.enter = (None, None, self._matrix(model.enter.weight)[None], self._vector(model.enter.bias))
        self.layers = [(self._matrix(layer.weight.permute(2, 0, 1)), self._vector(layer.bias), dilation)
                       for layer, dilation in zip(model.convolutions, model.config.dilations, strict=True)]

    def _state_layout(self, B: int, slots: int) -> Layout:
        return {"y": ((len(self.layers) + 1, B, slots, self.config.hidden_size), torch.float32)}

    @property
    def last_states(self) -> Tensor:
        return self.states["y"][-1]

    def _read(self, tokens: Tensor, positions: Tensor, texts: tuple) -> None:
        y = self.states["y"]
        mix_triton(positions, None, None, *texts, *self.enter, 1.0, y[0][: len(positions)], None)
        for layer, weights in enumerate(self.layers):
            convolution_triton(positions, y[layer], *weights, y[layer + 1])


def own_bytes(model: CopyModel, kind: torch.dtype) -> int:
    """Bytes of a drafter without embedding and head, at most: its copy attention as a module, and every matrix as kernels
    read it."""
    as_read = sum(weight.numel() * (kind.itemsize if weight.dim() > 1 else 4)
                  for name, weight in model.named_parameters() if name not in ("embedding", "head"))
    return as_read + sum(weight.nbytes for weight in model.pointer.parameters())
