"""The ids that the rows of a neural drafter may draft, and their rows of the head (kernels/drafting/vocabulary_head.py)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.state import NO_DISTRIBUTIONS, DecodeState, Draft
from foredraft.kernels.core.gemm_microkernel import LANES
from foredraft.kernels.drafting.vocabulary_head import VocabularyHead, take_outputs


class DraftVocabulary:
    """`ids` [F], most frequent first, for every row, and the ids of the row's own source; no ids: the whole head.

    head: packed as in kernels/model/linear.py, [V/16, C, 16]. With `copies` the places of a source's ids are kept, so that a
    pointer can raise their logits.
    """

    def __init__(self, head: np.ndarray, vocab_size: int, ids: np.ndarray | None, copies: bool):
        ids = np.zeros(0, np.int64) if ids is None else ids
        self.packed, self.vocab_size, self.copies, self.whole = head, vocab_size, copies, len(ids) == 0
        self.ids = np.arange(vocab_size) if self.whole else ids.astype(np.int64)
        self.head = head if self.whole else take_outputs(head, self.ids)
        # where an id stands in the list, -1: nowhere
        self._place = np.full(vocab_size, -1, np.int64)
        self._place[self.ids] = np.arange(len(self.ids))
        self._logits = torch.zeros(0, 0, 0)
        self._room = (0, 0)
        self.rows = self._empty(0, 0)

    def _empty(self, rows: int, source: int) -> VocabularyHead:
        own = 0 if self.whole else -(-source // LANES) * LANES
        return VocabularyHead(
            self.ids, self.head, np.zeros((rows, own), np.int64),
            np.zeros((rows, own // LANES, *self.head.shape[1:]), self.head.dtype), np.zeros(rows, np.int64),
            np.zeros((rows, source if self.copies else 0), np.int64))

    def reserve(self, rows: int, source: int) -> None:
        """Room for B rows with sources of S ids; what rows hold stays."""
        if rows > self._room[0] or source > self._room[1]:
            self._room = max(rows, self._room[0]), max(source, self._room[1])
            old, self.rows = self.rows, self._empty(*self._room)
            for kept, new in zip(old[2:], self.rows[2:], strict=True):
                new[tuple(map(slice, kept.shape))] = kept

    def admit(self, row: int, source: Tensor) -> None:
        ids = source.numpy()
        places = self._place[ids]
        own = np.unique(ids[places < 0])
        places = np.where(places < 0, len(self.ids) + np.searchsorted(own, ids), places)
        if len(own):
            blocks = take_outputs(self.packed, own)
            self.rows.own_tokens[row, : len(own)] = own
            self.rows.own_head[row, : len(blocks)] = blocks
        self.rows.own_counts[row] = len(own)
        if self.copies:
            self.rows.source_columns[row, : len(ids)] = places

    def scores(self, rows: int) -> np.ndarray:
        """Room for the scores of `rows` rows."""
        return np.empty((rows, len(self.ids) + self.rows.own_tokens.shape[1]), np.float32)

    def empty_draft(self, state: DecodeState, proposer: int) -> Draft:
        """A draft without tokens; with room for the distributions, a buffer that the next draft overwrites, where rows need it."""
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
    """logits [B, K, V] and lse [B, K] of a draft, for a kernel; empty where it has none."""
    return NO_DISTRIBUTIONS if draft.logits is None else (draft.logits.numpy(), draft.lse.numpy())


# logits and lse of a draft that has none
