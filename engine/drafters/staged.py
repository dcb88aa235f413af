"""Staged drafts (Spector and Re 2023): a T5 drafter whose own drafts are sped up by another drafter.

The T5 is the target of a loop inside a round: any drafter proposes, the T5 reads several ids in one pass, and what its
verification lets stand follows its distribution exactly, so that it drafts for the real target as if it had drafted alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.drafters.cascade import make_parts
from foredraft.engine.drafters.neural.t5_drafter import T5Drafter
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.loop import step
from foredraft.engine.protocols import Capabilities, Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError
from foredraft.kernels.drafting.vocabulary_head import VOCABULARY_HEAD
from foredraft.kernels.sampling.sample import SAMPLE


class StagedDrafter(T5Drafter):
    """Drafts of the T5 of `middle`, with `drafter` drafting for it.

    An id's proposer is the inner drafter's where the T5 took it over, else the T5's. The inner loop draws from a seed of its
    own for every round: ids that a round refused are drafted again, with other noise. passes: those of the T5 so far.
    """

    capabilities = Capabilities()

    def __init__(self, middle: T5Drafter, drafter: Drafter):
        super().__init__(middle.t5.weights, None if middle.vocabulary.is_full else middle.vocabulary.tokens)
        self.drafter, self.name = drafter, f"staged:{drafter.name},{middle.name}"
        self.passes = 0
        self._inner: WeakKeyDictionary[DecodeState, DecodeState] = WeakKeyDictionary()

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> StagedDrafter:
        drafters = make_parts(name, argument, setup)
        if len(drafters) > 2 or not isinstance(drafters[1], T5Drafter):
            raise UserError(f"drafter '{name}:{argument}': name a drafter and the folder of the T5 that it drafts for; other "
                            "drafters read their tokens one by one and gain nothing")
        return cls(drafters[1], drafters[0])

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        super().admit(rows, sources, encoded)
        self.drafter.admit(rows, sources, encoded)

    def release(self, rows: Sequence[int]) -> None:
        super().release(rows)
        self.drafter.release(rows)

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
        places = starts[:, None] + torch.arange(K)
        drafted = torch.arange(K) < lengths[:, None]
        places = places.clamp(max=inner.tokens.shape[1] - 1)
        draft.tokens[drafted] = inner.tokens.gather(1, places)[drafted]
        proposer = inner.proposer.gather(1, places)
        draft.proposer[drafted & (proposer > 0)] = proposer[drafted & (proposer > 0)]
        draft.lengths = lengths
        for row in np.flatnonzero(lengths.numpy()):
            read = int(inner.lengths[row]) - 1
            self._cached_tokens[row, :read], self._num_cached[row] = inner.tokens[row, :read].numpy(), read
        return draft

    def _state(self, state: DecodeState, allowed: Tensor) -> DecodeState:
        """The inner loop's state: what is committed, to be continued by `allowed` ids."""
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
        inner.seeds.copy_(torch.from_numpy(round_seeds(state.host.seeds, state.host.lengths)))
        return inner

    def _distributions(self, state: DecodeState, logits: Tensor, offsets: Tensor, counts: Tensor, draft: Draft) -> None:
        """Write the distributions of the ids that an inner round emitted, rows 0.. of logits [B, R, V], to their places."""
        nobody = np.zeros(1, np.int64)
        for b in np.flatnonzero(counts.numpy()):
            for row in range(int(counts[b])):
                place, one = int(offsets[b]) + row, slice(b, b + 1)
                SAMPLE[self.backend](
                    logits[one, row].numpy(), state.temperature[one].numpy(), state.top_k[one].numpy(),
                    state.top_p[one].numpy(), nobody, nobody, 0, nobody.copy(), draft.logits[one, place].numpy(),
                    draft.lse[one, place].numpy())


class _Middle:
    """The T5 of a drafter as a Target, with the ids that it may draft."""

    def __init__(self, drafter: T5Drafter):
        self.drafter, self.scores = drafter, torch.zeros(0)

    def decode(self, tokens: Tensor, positions: Tensor, parents: Tensor | None = None) -> Tensor:
        self.read = (positions >= 0).numpy()
        return self.drafter.t5.decode(tokens, positions, parents)

    def keep(self, path: Tensor) -> None:
        self.drafter.t5.keep(path)

    def choose(self, hidden: Tensor) -> Tensor:
        """[B, R]: the likeliest id after each row that was read."""
        return self.logits(hidden).argmax(-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, R, V]: -inf for ids that the row may not draft; rows that were not read hold no meaning."""
        vocabulary, config = self.drafter.vocabulary, self.drafter.t5.config
        rows, columns = np.nonzero(self.read)
        x = hidden.numpy()[rows, columns] * np.float32(config.head_scale)
        scores = vocabulary.empty_scores(len(rows))
        VOCABULARY_HEAD[self.drafter.backend](x, rows, vocabulary.heads, np.zeros((len(rows), 0), np.float32), scores)
        out = np.full((*self.read.shape, config.vocab_size), -np.inf, np.float32)
        F = len(vocabulary.tokens)
        for i, (b, r) in enumerate(zip(rows, columns, strict=True)):
            own = int(vocabulary.heads.own_counts[b])
            out[b, r, vocabulary.tokens] = scores[i, :F]
            out[b, r, vocabulary.heads.own_tokens[b, :own]] = scores[i, F : F + own]
        self.scores = torch.from_numpy(out)
        return self.scores


def round_seeds(seeds: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A seed for each round of each row, of seeds, starts [B] int64: splitmix64's finaliser of their sum."""
    with np.errstate(over="ignore"):
        value = seeds.view(np.uint64) + (starts.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (value ^ (value >> np.uint64(31))).view(np.int64)
