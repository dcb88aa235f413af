"""Decoding the same articles again and again, the trials of a search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from foredraft.engine.drafters.none import NoDrafter
from foredraft.engine.generate import Model
from foredraft.engine.loop import decode
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState


class TrialDecoder:
    """Articles that are encoded once and decoded by every trial.

    Parameters
    ----------
    model
        The target.
    sources
        n token sequences that end in `</s>`.
    max_new_tokens
        Longest output.
    draft_tokens
        The largest K.
    temperature
        Of the requests that the search is made for.

    Attributes
    ----------
    outputs
        [n] of [T_i] int64, the target's own outputs.
    """

    def __init__(self, model: Model, sources: list[np.ndarray], max_new_tokens: int, draft_tokens: int,
                 temperature: float = 0.0):
        self.target, self.limit, self.K, self.temperature = model.target, max_new_tokens + 1, draft_tokens, temperature
        self.sources = [torch.from_numpy(source.astype(np.int64)) for source in sources]
        self.target.reserve(len(sources), self.limit, draft_tokens, max(map(len, sources)))
        with torch.inference_mode():
            self.encoded = self.target.admit(range(len(sources)), self.sources)
            self.outputs = self._outputs(self._decode(NoDrafter(), 0))

    def _state(self, B: int, K: int) -> DecodeState:
        zeros = torch.zeros(B, dtype=torch.int64)
        return DecodeState(
            limits=zeros + self.limit, draft_tokens=zeros + K, temperature=torch.full((B,), float(self.temperature)),
            top_k=zeros, top_p=torch.ones(B), seeds=torch.arange(B), start_token=self.target.start_token,
            end_token=self.target.end_token, width=self.target.config.d_model)

    def _middle_state(self, K: int) -> DecodeState:
        """The state of one sequence in the middle of the first article's output."""
        state, middle = self._state(1, K), max(2, len(self.outputs[0]) // 2)
        state.tokens[0, 1:middle] = torch.from_numpy(self.outputs[0][: middle - 1])
        state.lengths[0] = middle
        return state

    def _decode(self, drafter: Drafter, K: int, after_step: Callable[[DecodeState], None] | None = None) -> DecodeState:
        state = self._state(len(self.sources), K)
        decode(state, self.target, drafter, after_step)
        return state

    @staticmethod
    def _outputs(state: DecodeState) -> list[np.ndarray]:
        return [tokens[1:length] for tokens, length in zip(state.tokens.numpy(), state.lengths.tolist(), strict=True)]

    def _check(self, state: DecodeState) -> None:
        """Greedy output must equal the target's. Sampled output has the same distribution, but other random numbers."""
        same = zip(self._outputs(state), self.outputs, strict=True)
        if self.temperature == 0 and not all(np.array_equal(ours, theirs) for ours, theirs in same):
            raise AssertionError("drafts changed the target's greedy output")
