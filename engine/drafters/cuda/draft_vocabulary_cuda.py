"""The draft vocabulary on a device (engine/drafters/neural/draft_vocabulary.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from foredraft.engine.models.device_memory import Layout, check_memory, layout_bytes
from foredraft.engine.sampling.draft_sampling import sample_into
from foredraft.engine.state import DecodeState, Draft
from foredraft.kernels.drafting.vocabulary_head_triton import (
    CopyScores,
    DeviceVocabulary,
    vocabulary_choose_triton,
    vocabulary_logits_triton,
)
from foredraft.kernels.model.cross_attention_triton import PAGE, page_bucket
from foredraft.kernels.model.lm_head_triton import WIDTH


class DraftVocabularyCuda:
    """Common tokens for every sequence, and the tokens of the sequence's own source.

    Parameters
    ----------
    head : Tensor [V, C]
        The whole head.
    tokens : Tensor [F] int64
        The common tokens, most frequent first; empty: all tokens.
    copies : bool
        Copy attention raises the logits of a source's tokens.

    Attributes
    ----------
    generation : int
        How often the buffers moved.
    """

    def __init__(self, head: Tensor, tokens: Tensor, copies: bool):
        self.head, self.vocab_size, self.device = head, len(head), head.device
        is_full = len(tokens) == 0
        self.has_own = copies or not is_full
        self.common = torch.arange(self.vocab_size, device=self.device) if is_full else tokens.to(self.device, torch.int64)
        # the column of each common token, -1 for others
        self._column = torch.full((self.vocab_size,), -1)
        self._column[self.common.cpu()] = torch.arange(len(self.common))
        self.generation, self.num_sequences, self.source, self.bucket = 0, 0, 0, 0
        self.buffers: dict[str, Tensor] = {}
        self._grow(0, 0)

    def _layout(self, B: int, source: int) -> Layout:
        X, F = source if self.has_own else 0, len(self.common)
        parts = B * (-(-F // WIDTH) + -(-X // WIDTH))
        return {
            "own": ((B, X), torch.int64), "own_counts": ((B,), torch.int64), "left_out": ((B, F), torch.int8),
            "work": ((parts,), torch.float32), "work_tokens": ((parts,), torch.int32),
            "arrived": ((-(-B // 16),), torch.int32), "logits": ((B, self.vocab_size), torch.float32),
        }

    def _grow(self, B: int, source: int) -> None:
        layout, released = self._layout(B, source), sum(buffer.nbytes for buffer in self.buffers.values())
        check_memory(self.device, layout_bytes(layout),
                     f"the draft vocabularies and logits of {B} sequences with {source} source tokens",
                     "lower batch_size or max_source", released)
        # the old buffers are released before the new ones are allocated
        self.buffers, self.num_sequences = {}, 0
        self.buffers = {name: torch.zeros(shape, dtype=kind, device=self.device) for name, (shape, kind) in layout.items()}
        self.buffers["logits"].fill_(float("-inf"))
        self.num_sequences, self.source = B, source
        self.generation += 1

    def reserve(self, num_sequences: int, source: int) -> None:
        """Make room for B sequences with sources of S tokens; growing forgets every sequence."""
        self.bucket = page_bucket(source) * PAGE
        if num_sequences > self.num_sequences or source > self.source:
            self._grow(max(num_sequences, self.num_sequences), max(self.bucket, self.source))

    def admit(self, sequence: int, source: Tensor) -> None:
        """Add the tokens of a sequence's source [S] int64."""
        if not self.has_own:
            return
        own, b = torch.unique(source.cpu()), self.buffers
        left_out = torch.zeros(len(self.common), dtype=torch.int8)
        columns = self._column[own]
        left_out[columns[columns >= 0]] = 1
        b["own"][sequence, : len(own)] = own.to(self.device)
        b["own_counts"][sequence].fill_(len(own))
        b["left_out"][sequence] = left_out.to(self.device)
        b["logits"][sequence].fill_(float("-inf"))

    def draft_into(self, draft: Draft, index: int, y: Tensor, state: DecodeState, copy: CopyScores | None = None) -> None:
        """Write draft token `index` of every sequence, and its distribution where sequences are sampled.

        Parameters
        ----------
        draft : Draft
        index : int
            In 0..K-1.
        y : Tensor [B, C]
            The drafter's outputs, scaled.
        state : DecodeState
        copy : CopyScores, optional
            What copy attention adds to the logits.
        """
        B, b = len(y), self.buffers
        vocabulary = DeviceVocabulary(self.common, b["own"][:B, : self.bucket], b["own_counts"][:B], b["left_out"][:B])
        if state.greedy:
            vocabulary_choose_triton(y, self.head, vocabulary, copy, draft.tokens[:, index], b["work"], b["work_tokens"],
                                     b["arrived"])
        else:
            vocabulary_logits_triton(y, self.head, vocabulary, copy, b["logits"])
            sample_into(draft, index, b["logits"][:B], state)
