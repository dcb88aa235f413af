"""The draft vocabulary: the tokens that a neural drafter may draft for each sequence, and its head over them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.state import NO_DISTRIBUTIONS, DecodeState, Draft
from foredraft.kernels.core.gemm_tile import LANES
from foredraft.kernels.drafting.vocabulary_head import VocabularyHead
from foredraft.kernels.model.packing import take_outputs


class DraftVocabulary:
    """Common tokens for every sequence, and the tokens of the sequence's own source.

    Parameters
    ----------
    head : np.ndarray [V/16, C, 16]
        The whole head, packed as in kernels/model/linear.py.
    vocab_size : int
        V.
    tokens : np.ndarray [F] int64, optional
        The common tokens, most frequent first; without them the vocabulary is full.
    copies : bool
        Keep the column of each source token, so that copy attention can raise its logit.

    Attributes
    ----------
    heads : VocabularyHead
        The head of every sequence, for kernels/drafting/vocabulary_head.py.
    is_full : bool
        All V tokens may be drafted.
    """

    def __init__(self, head: np.ndarray, vocab_size: int, tokens: np.ndarray | None, copies: bool):
        tokens = np.zeros(0, np.int64) if tokens is None else tokens
        self.full_head, self.vocab_size, self.copies, self.is_full = head, vocab_size, copies, len(tokens) == 0
        self.tokens = np.arange(vocab_size) if self.is_full else tokens.astype(np.int64)
        self.common_head = head if self.is_full else take_outputs(head, self.tokens)
        # the column of each common token, -1 for others
        self._column = np.full(vocab_size, -1, np.int64)
        self._column[self.tokens] = np.arange(len(self.tokens))
        self._logits = torch.zeros(0, 0, 0)
        self._capacity = (0, 0)
        self.heads = self._empty(0, 0)

    def _empty(self, num_sequences: int, source: int) -> VocabularyHead:
        B, X = num_sequences, 0 if self.is_full else -(-source // LANES) * LANES
        return VocabularyHead(
            self.tokens, self.common_head, np.zeros((B, X), np.int64),
            np.zeros((B, X // LANES, *self.common_head.shape[1:]), self.common_head.dtype), np.zeros(B, np.int64),
            np.zeros((B, source if self.copies else 0), np.int64))

    def reserve(self, num_sequences: int, source: int) -> None:
        """Make room for B sequences with sources of S tokens; admitted ones stay."""
        if num_sequences > self._capacity[0] or source > self._capacity[1]:
            self._capacity = max(num_sequences, self._capacity[0]), max(source, self._capacity[1])
            old, self.heads = self.heads, self._empty(*self._capacity)
            for kept, new in zip(old[2:], self.heads[2:], strict=True):
                new[tuple(map(slice, kept.shape))] = kept

    def admit(self, sequence: int, source: Tensor) -> None:
        """Add the tokens of a sequence's source [S] int64."""
        tokens, heads = source.numpy(), self.heads
        columns = self._column[tokens]
        own = np.unique(tokens[columns < 0])
        columns = np.where(columns < 0, len(self.tokens) + np.searchsorted(own, tokens), columns)
        if len(own):
            blocks = take_outputs(self.full_head, own)
            heads.own_tokens[sequence, : len(own)] = own
            heads.own_head[sequence, : len(blocks)] = blocks
        heads.own_counts[sequence] = len(own)
        if self.copies:
            heads.source_columns[sequence, : len(tokens)] = columns

    def empty_scores(self, n: int) -> np.ndarray:
        """An array for the scores [n, F + X] of n sequences."""
        return np.empty((n, len(self.tokens) + self.heads.own_tokens.shape[1]), np.float32)

    def empty_draft(self, state: DecodeState, proposer: int) -> Draft:
        """A draft without tokens. Where a sequence samples, its logits are a buffer that the next draft overwrites."""
        B, K = state.batch_size, state.max_draft
        draft = Draft.empty(B, K)
        draft.proposer.numpy()[:] = proposer
        if not state.greedy:
            if self._logits.shape != (B, K, self.vocab_size):
                self._logits = torch.zeros(B, K, self.vocab_size)
            draft.logits = self._logits
            draft.lse, draft.dense = torch.from_numpy(np.zeros((B, K))), torch.from_numpy(state.host.temperature > 0)
        return draft


def distributions_of(draft: Draft) -> tuple[np.ndarray, np.ndarray]:
    """logits [B, K, V] and lse [B, K] of a draft, for a kernel; empty arrays where it has none."""
    return NO_DISTRIBUTIONS if draft.logits is None else (draft.logits.numpy(), draft.lse.numpy())
