"""Self-speculative drafts (Zhang et al. 2023, "Draft & Verify"): the target's own decoder without some sublayers.

Weights, head and caches are the target's. The target's next pass overwrites what a draft has written into the self-attention
cache (kernels/drafting/layer_skip_drafting.py), so committed positions always hold the full model's keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from foredraft.engine.drafters.neural.draft_vocabulary import DraftVocabulary, distributions_of
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.drafters.skip_mask import GOAL, THRESHOLD, SkipSet, format_skip, parse_skip
from foredraft.engine.models.t5 import T5
from foredraft.engine.protocols import Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError
from foredraft.kernels.drafting.layer_skip_drafting import DRAFT_LAYER_SKIP, Decoder, Exit


class SelfDrafter(Drafter):
    """Point masses in greedy sequences, distributions in sampled ones. A draft ends where its confidence is low.

    Parameters
    ----------
    target : T5
    kept : ndarray [L, 3] bool
        The sublayers that run (skip_mask.py).
    goal, threshold : float
        The acceptance rate that the exit threshold is tuned to, and the threshold's start; goal 0 drafts K tokens always.
    tokens : ndarray [F] int64 or None
        The draft vocabulary besides the tokens of the source; None is all.
    """

    name = "self"

    def __init__(self, target: T5, kept: np.ndarray, goal: float = GOAL, threshold: float = THRESHOLD,
                 tokens: np.ndarray | None = None):
        if not 0 <= goal <= 1 or not 0 <= threshold <= 1:
            raise UserError(f"the exit's goal {goal} and threshold {threshold} are probabilities; give numbers from 0 to 1")
        self.target, self.kept, self.start = target, kept, threshold
        self.backend = target.backend
        self.vocabulary = DraftVocabulary(target.weights.head, target.config.vocab_size, tokens, copies=False)
        self.exit = Exit(float(goal), np.full(1, float(threshold)), np.full(1, float(goal)), np.zeros(0, np.int64),
                         np.zeros(0, np.int64))

    @classmethod
    def open(cls, spec: str, target: T5, target_folder: Path) -> SelfDrafter:
        """`spec`: a skip file, or the skipped sublayers as text (skip_mask.py)."""
        if not isinstance(target, T5):
            raise UserError(f"drafter 'self:{spec}' runs on the CPU only so far; on CUDA give lookup, ngram or none")
        layers = target.config.num_decoder_layers
        if not spec.endswith(".json"):
            return cls(target, parse_skip(spec, layers))
        found = SkipSet.load(spec, target_folder)
        return cls(target, parse_skip(found.skip, layers), found.goal, found.threshold, np.array(found.draft_ids, np.int64))

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> SelfDrafter:
        return cls.open(argument, setup.target, setup.folder)

    @property
    def skip(self) -> str:
        """The skipped sublayers, as text."""
        return format_skip(self.kept)

    @property
    def threshold(self) -> float:
        """The exit threshold of greedy sequences, as tuned so far."""
        return float(self.exit.thresholds[0])

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Only a draft vocabulary needs the sources; the target has cached the rest."""
        most = max(sequences) + 1
        self.vocabulary.reserve(most, max(len(source) for source in sources))
        self._grow(most)
        for sequence, source in zip(sequences, sources, strict=True):
            if not self.vocabulary.is_full:
                self.vocabulary.admit(sequence, source)
            self.exit.thresholds[sequence + 1], self.exit.rates[sequence + 1] = self.start, self.exit.goal
            self.exit.asked[sequence] = -1

    def _grow(self, batch_size: int) -> None:
        if (more := batch_size - len(self.exit.asked)) > 0:
            self.exit = Exit(self.exit.goal, *(np.pad(known, (0, more)) for known in self.exit[1:]))

    def release(self, sequences: Sequence[int]) -> None:
        """Nothing to release: the caches are the target's."""

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        draft = self.vocabulary.empty_draft(state, PROPOSERS.index(self.name))
        self._grow(state.batch_size)
        w, cache, c = self.target.weights, self.target.cache, self.target.config
        decoder = Decoder(
            w.embedding, w.norms, w.final_norm, w.qkv, w.self_out, w.cross_q, w.cross_out, w.ff_in, w.ff_out,
            self.target.bias, cache.k, cache.v, cache.pages_k, cache.pages_v, cache.table, cache.sources, c.activation,
            c.gated, c.epsilon, self.kept)
        host = state.host
        DRAFT_LAYER_SKIP[self.backend](
            host.tokens, host.lengths, state.allowed(budget).numpy(), decoder, self.vocabulary.heads, c.head_scale,
            self.exit, host.num_steps, host.last_accepted, host.temperature, host.top_k, host.top_p, host.seeds,
            state.end_token, draft.tokens.numpy(), draft.lengths.numpy(), *distributions_of(draft))
        return draft
