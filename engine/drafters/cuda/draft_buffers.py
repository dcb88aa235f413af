"""Device buffers of a drafter for one state. They stay at one address from step to step, as captured graphs need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch

from foredraft.engine.models.device_memory import check_memory
from foredraft.engine.sampling.draft_sampling import dense_draft
from foredraft.engine.state import DecodeState, Draft
from foredraft.kernels.drafting.drafter_inputs_triton import draft_lengths_triton, drafter_inputs_triton

Buffers = TypeVar("Buffers")


class PerState(Generic[Buffers]):
    """One set of buffers for each state that is drafted for, as long as the state lives."""

    def __init__(self, make: Callable[[DecodeState], Buffers]):
        self._make = make
        self._buffers: WeakKeyDictionary[DecodeState, Buffers] = WeakKeyDictionary()

    def of(self, state: DecodeState) -> Buffers:
        """The state's buffers, made on its first step."""
        if state not in self._buffers:
            self._buffers[state] = self._make(state)
        return self._buffers[state]


class DraftBuffers:
    """A neural drafter's draft and inputs.

    Attributes
    ----------
    draft : Draft
    read, positions : Tensor [B, 2] int64
        The last two committed tokens and their positions, -1: not read.
    later : Tensor [K, B] int64
        Positions of the draft tokens that the drafter reads, else -1 (kernels/drafting/drafter_inputs_triton.py).
    """

    def __init__(self, state: DecodeState, vocab_size: int, proposer: int):
        B, K, device = state.batch_size, state.max_draft, state.tokens.device
        if state.greedy:
            self.draft = Draft.empty(B, K, device)
        else:
            check_memory(device, B * K * (4 * vocab_size + 8), f"the distributions of {K} drafts for {B} sequences",
                         "lower batch_size or draft_tokens")
            self.draft = dense_draft(state, vocab_size)
        # a sequence may be sampled in one request and greedy in the next
        self.draft.dense = torch.zeros(B, dtype=torch.bool, device=device)
        self.draft.proposer.fill_(proposer)
        self.read, self.positions = (torch.zeros(B, 2, dtype=torch.int64, device=device) for _ in range(2))
        self.later = torch.zeros(K, B, dtype=torch.int64, device=device)

    def write_inputs(self, state: DecodeState) -> None:
        """Start a step's draft: fill read, positions, later and draft.dense."""
        drafter_inputs_triton(state.tokens, state.lengths, state.finished, state.limits, state.draft_tokens,
                              state.temperature, self.read, self.positions, self.later, self.draft.dense)

    def write_lengths(self, state: DecodeState) -> Draft:
        """End a step's draft: fill draft.lengths."""
        draft_lengths_triton(self.draft.tokens, state.lengths, state.finished, state.limits, state.draft_tokens,
                             state.end_token, self.draft.lengths)
        return self.draft
