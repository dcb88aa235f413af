"""Staged drafts (Spector and Re 2023): another drafter proposes for a T5 drafter.

Inside one step the T5 drafter is the target of an inner loop: the other drafter proposes, the T5 reads several tokens in one
pass and verifies them. The accepted tokens follow the T5's distribution, as if the T5 had drafted alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.drafters.cascade import make_drafters
from foredraft.engine.drafters.neural.t5_drafter import T5Drafter
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.loop import step
from foredraft.engine.protocols import Capabilities, Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError
from foredraft.kernels.drafting.vocabulary_head import VOCABULARY_HEAD
from foredraft.kernels.sampling.sample import SAMPLE


class StagedDrafter(T5Drafter):
    """Drafts of the T5 `middle`, for which `drafter` proposes.

    The inner drafter is the proposer of the tokens that the T5 accepted from it. Each step of the outer loop has its own
    inner seed, so that tokens rejected before are sampled again with other noise.

    Attributes
    ----------
    passes : int
        Passes of the T5 so far.
    """

    capabilities = Capabilities()

    def __init__(self, middle: T5Drafter, drafter: Drafter):
        super().__init__(middle.t5.weights, None if middle.vocabulary.is_full else middle.vocabulary.tokens)
        self.drafter, self.name = drafter, f"staged:{drafter.name},{middle.name}"
        self.passes = 0
        self._inner: WeakKeyDictionary[DecodeState, DecodeState] = WeakKeyDictionary()

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> StagedDrafter:
        drafters = make_drafters(name, argument, setup)
        if len(drafters) > 2 or not isinstance(drafters[1], T5Drafter):
            raise UserError(f"drafter '{name}:{argument}': name a drafter and the folder of the T5 that it drafts for; "
                            "other drafters read their tokens one by one and gain nothing")
        return cls(drafters[1], drafters[0])

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        super().admit(sequences, sources, encoded)
        self.drafter.admit(sequences, sources, encoded)

    def release(self, sequences: Sequence[int]) -> None:
        super().release(sequences)
        self.drafter.release(sequences)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        draft = self.vocabulary.empty_draft(state, PROPOSERS.index("t5"))
        K = state.max_draft
        self._reserve(state, state.capacity + 2 * (K + 1))
        allowed = state.allowed(budget)
        # the inner loop reads the last committed token
        self._read_committed(state, allowed.numpy(), but_last=1)
        inner = self._state(state, allowed)
        middle = _Middle(self)
        starts = inner.lengths.clone()
        while not bool(inner.finished.all()):
            before = inner.lengths.clone()
            step(inner, middle, self.drafter)
            self.passes += 1
            if not state.greedy:
                self._distributions(state, middle.scores, before - starts, inner.lengths - before, draft)
        lengths = inner.lengths - starts
        positions = starts[:, None] + torch.arange(K)
        drafted = torch.arange(K) < lengths[:, None]
        positions = positions.clamp(max=inner.tokens.shape[1] - 1)
        draft.tokens[drafted] = inner.tokens.gather(1, positions)[drafted]
        proposer = inner.proposer.gather(1, positions)
        draft.proposer[drafted & (proposer > 0)] = proposer[drafted & (proposer > 0)]
        draft.lengths = lengths
        for b in np.flatnonzero(lengths.numpy()):
            read = int(inner.lengths[b]) - 1
            self._cached_tokens[b, :read], self._num_cached[b] = inner.tokens[b, :read].numpy(), read
        return draft

    def _state(self, state: DecodeState, allowed: Tensor) -> DecodeState:
        """The inner loop's state: the committed tokens, to be continued by `allowed` [B] tokens."""
        if state not in self._inner:
            self._inner[state] = DecodeState(
                limits=state.limits.clone(), draft_tokens=torch.full_like(state.draft_tokens, state.max_draft),
                temperature=state.temperature, top_k=state.top_k, top_p=state.top_p, seeds=state.seeds.clone(),
                start_token=0, end_token=state.end_token, width=self.t5.config.d_model)
        inner = self._inner[state]
        inner.greedy, inner.has_top_k_top_p = state.greedy, state.has_top_k_top_p
        inner.tokens.copy_(state.tokens)
        inner.proposer.zero_()
        inner.lengths.copy_(state.lengths)
        inner.limits.copy_(state.lengths + allowed)
        inner.finished.copy_(allowed == 0)
        inner.seeds.copy_(torch.from_numpy(step_seeds(state.host.seeds, state.host.lengths)))
        return inner

    def _distributions(self, state: DecodeState, logits: Tensor, offsets: Tensor, counts: Tensor, draft: Draft) -> None:
        """Copy the distributions of the tokens that an inner step emitted, query positions 0.. of logits [B, R, V]."""
        unused = np.zeros(1, np.int64)
        for b in np.flatnonzero(counts.numpy()):
            for r in range(int(counts[b])):
                position, one = int(offsets[b]) + r, slice(b, b + 1)
                SAMPLE[self.backend](
                    logits[one, r].numpy(), state.temperature[one].numpy(), state.top_k[one].numpy(),
                    state.top_p[one].numpy(), unused, unused, 0, unused.copy(), draft.logits[one, position].numpy(),
                    draft.lse[one, position].numpy())


class _Middle:
    """The T5 of a drafter as a Target, over its draft vocabulary."""

    def __init__(self, drafter: T5Drafter):
        self.drafter, self.scores = drafter, torch.zeros(0)

    def decode(self, tokens: Tensor, positions: Tensor, parents: Tensor | None = None) -> Tensor:
        self.read = (positions >= 0).numpy()
        return self.drafter.t5.decode(tokens, positions, parents)

    def keep(self, path: Tensor) -> None:
        self.drafter.t5.keep(path)

    def choose(self, hidden: Tensor) -> Tensor:
        """The argmax [B, R]."""
        return self.logits(hidden).argmax(-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [B, R, V], -inf outside of the draft vocabulary; undefined where nothing was read."""
        vocabulary, config = self.drafter.vocabulary, self.drafter.t5.config
        sequences, columns = np.nonzero(self.read)
        x = hidden.numpy()[sequences, columns] * np.float32(config.head_scale)
        scores = vocabulary.empty_scores(len(sequences))
        no_copies = np.zeros((len(sequences), 0), np.float32)
        VOCABULARY_HEAD[self.drafter.backend](x, sequences, vocabulary.heads, no_copies, scores)
        out = np.full((*self.read.shape, config.vocab_size), -np.inf, np.float32)
        F = len(vocabulary.tokens)
        for i, (b, r) in enumerate(zip(sequences, columns, strict=True)):
            own = int(vocabulary.heads.own_counts[b])
            out[b, r, vocabulary.tokens] = scores[i, :F]
            out[b, r, vocabulary.heads.own_tokens[b, :own]] = scores[i, F : F + own]
        self.scores = torch.from_numpy(out)
        return self.scores


def step_seeds(seeds: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A seed [B] for the step that starts at length `starts` [B]: splitmix64's finaliser of seed and start."""
    with np.errstate(over="ignore"):
        value = seeds.view(np.uint64) + (starts.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (value ^ (value >> np.uint64(31))).view(np.int64)
