"""Self-speculative drafts (Zhang et al. 2023, "Draft & Verify"): the target's own decoder with sublayers skipped.

Nothing is held twice: weights, head, cross keys and values and the self cache are the target's. What a draft writes into
that cache the target's next pass overwrites before it reads it (kernels/drafting/layer_skip_drafting.py), and committed positions hold the full
model's keys, whoever drafted them, so that there is never anything to catch up with.
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
    """Greedy rows as point masses, others with their distributions; stops a draft early where its own confidence is low."""

    name = "self"

    def __init__(self, target: T5, kept: np.ndarray, goal: float = GOAL, threshold: float = THRESHOLD,
                 ids: np.ndarray | None = None):
        """kept [L, 3] bool: the sublayers that run (skip.py). goal: the acceptance that the exit threshold is tuned to,
        from `threshold` on; 0 drafts K ids always. ids: all it may draft beside those of the source; none: all."""
        if not 0 <= goal <= 1 or not 0 <= threshold <= 1:
            raise UserError(f"the exit's goal {goal} and threshold {threshold} are probabilities; give numbers from 0 to 1")
        self.target, self.kept, self.start = target, kept, threshold
        self.backend = target.backend
        self.vocabulary = DraftVocabulary(target.weights.head, target.config.vocab_size, ids, copies=False)
        self.exit = Exit(float(goal), np.full(1, float(threshold)), np.full(1, float(goal)), np.zeros(0, np.int64),
                         np.zeros(0, np.int64))

    @classmethod
    def open(cls, spec: str, target: T5, target_folder: Path) -> SelfDrafter:
        """A skip file, or the skipped sublayers themselves (skip.py)."""
        if not isinstance(target, T5):
            raise UserError(f"drafter 'self:{spec}': self-speculative drafts run on the CPU only so far; on a device use "
                            "lookup, ngram or none")
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
        """What is skipped, as text."""
        return format_skip(self.kept)

    @property
    def threshold(self) -> float:
        """Where greedy requests have tuned the exit's threshold to so far."""
        return float(self.exit.thresholds[0])

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """The target has admitted the rows; only a shortlist needs their ids."""
        most = max(rows) + 1
        self.vocabulary.reserve(most, max(len(source) for source in sources))
        self._grow(most)
        for row, source in zip(rows, sources, strict=True):
            if not self.vocabulary.is_full:
                self.vocabulary.admit(row, source)
            self.exit.thresholds[row + 1], self.exit.rates[row + 1], self.exit.asked[row] = self.start, self.exit.goal, -1

    def _grow(self, rows: int) -> None:
        if (more := rows - len(self.exit.asked)) > 0:
            self.exit = Exit(self.exit.goal, *(np.pad(known, (0, more)) for known in self.exit[1:]))

    def release(self, rows: Sequence[int]) -> None:
        """Nothing of its own to give back."""

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        """One compiled call for the whole batch, on the target's caches and the state's own memory."""
        draft = self.vocabulary.empty_draft(state, PROPOSERS.index(self.name))
        self._grow(state.batch_size)
        w, cache, c = self.target.weights, self.target.cache, self.target.config
        decoder = Decoder(
            w.embedding, w.norms, w.final_norm, w.qkv, w.self_out, w.cross_q, w.cross_out, w.ff_in, w.ff_out,
            self.target.bias, cache.k, cache.v, cache.pages_k, cache.pages_v, cache.table, cache.sources, c.activation,
            c.gated, c.epsilon, self.kept)
        host = state.host
        DRAFT_LAYER_SKIP[self.backend](
            host.tokens, host.lengths, state.allowed(budget).numpy(), decoder, self.vocabulary.heads, c.head_scale, self.exit,
            host.num_steps, host.last_accepted, host.temperature, host.top_k, host.top_p, host.seeds, state.end_token,
            draft.tokens.numpy(), draft.lengths.numpy(), *distributions_of(draft))
        return draft
