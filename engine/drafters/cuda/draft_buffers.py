"""A neural drafter's turn on a device: its draft and what it reads for it, in place from round to round."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from foredraft.engine.models.device_memory import check_memory
from foredraft.engine.sampling.draft_sampling import dense_draft
from foredraft.engine.state import DecodeState, Draft
from foredraft.kernels.drafting.drafter_inputs_triton import draft_lengths_triton, drafter_inputs_triton


class DraftBuffers:
    """read, places [B, 2]: the last two committed ids and their positions; later [K, B]: the drafts' (kernels/drafting/drafter_inputs_triton.py)."""

    def __init__(self, state: DecodeState, vocab_size: int, proposer: int):
        B, K, device = state.batch_size, state.max_draft, state.tokens.device
        if state.greedy:
            self.draft = Draft.empty(B, K, device)
        else:
            check_memory(device, B * K * (4 * vocab_size + 8), f"the distributions of {K} drafts for {B} rows",
                         "lower batch_size or draft_tokens")
            self.draft = dense_draft(state, vocab_size)
        # a state's rows may be sampled in one request and greedy in the next
        self.draft.dense = torch.zeros(B, dtype=torch.bool, device=device)
        self.draft.proposer.fill_(proposer)
        self.read, self.places = (torch.zeros(B, 2, dtype=torch.int64, device=device) for _ in range(2))
        self.later = torch.zeros(K, B, dtype=torch.int64, device=device)

    def begin(self, state: DecodeState) -> None:
        drafter_inputs_triton(state.tokens, state.lengths, state.finished, state.limits, state.draft_tokens, state.temperature,
                     self.read, self.places, self.later, self.draft.dense)

    def end(self, state: DecodeState) -> Draft:
        draft = self.draft
        draft_lengths_triton(draft.tokens, state.lengths, state.finished, state.limits, state.draft_tokens, state.end_token,
                   draft.lengths)
        return draft


class BuffersByState:
    """One DraftBuffers for each state that is drafted for, as long as the state lives."""

    def __init__(self, vocab_size: int, proposer: int):
        self.vocab_size, self.proposer = vocab_size, proposer
        self._of: WeakKeyDictionary[DecodeState, DraftBuffers] = WeakKeyDictionary()

    def of(self, state: DecodeState) -> DraftBuffers:
        if state not in self._of:
            self._of[state] = DraftBuffers(state, self.vocab_size, self.proposer)
        return self._of[state]
