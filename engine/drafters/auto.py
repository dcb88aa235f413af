"""drafter="auto": chooses among copies and trained drafters; draft_length/adaptive_drafter.py chooses the lengths.

Copies cost almost nothing, and greedy targets accept long ones; so greedy batches copy, and call the trained drafters after
the copies only where copies are short. A sampled target rejects copies early, so sampled batches use a trained drafter; a
sequence that is alone also copies after a long match. docs/benchmarks.md has the comparison that this follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from foredraft import embedded
from foredraft.engine.draft_length.lazy_admission import LazyAdmission
from foredraft.engine.drafters.cascade import CascadeDrafter
from foredraft.engine.drafters.lookup import LookupDrafter, word_starts
from foredraft.engine.drafters.ngram import open_table
from foredraft.engine.protocols import Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError
from foredraft.ngram_native.prompt_lookup.source_index import LOOKUP, NGRAM

# Greedy batches copy alone while a step with a copy emits so many tokens.
MIN_EMITTED = 2.0
# Tokens that a step with a copy is assumed to emit at first, and the weight of a step in the running mean: a few rejected
# copies must not bring in a trained drafter, which takes one or two steps to read a source.
START_EMITTED, STEP_WEIGHT = 4.0, 0.02
# Greedy steps between updates of the running mean: an update takes as long as a small kernel.
UPDATE_STEPS = 16
# Tokens that a sampled sequence's copy must match: after fewer, a trained drafter is accepted more often.
LONG_MATCH = 3


class AutoDrafter(CascadeDrafter):
    """Uses `copying` (prompt lookup, a table) for greedy batches, with `trained` drafters after it where copies are short.

    A batch with a sampled sequence uses the first trained drafter, or `copying` where there is none.
    Greedy tokens, and sampled ones without `trained`, are those of plain decoding. A trained drafter samples its drafts: the
    output has the target's distribution, and a seeded request repeats, whatever else is in its batch (adaptive_drafter.py).
    emitted: running mean of the tokens that a greedy step of copies emits.
    """

    def __init__(self, copying: Drafter, trained: Sequence[Drafter] = ()):
        super().__init__([copying, *trained])
        self.name, self.emitted = "auto:" + ",".join(drafter.name for drafter in self.drafters), START_EMITTED
        self.capabilities = replace(self.capabilities, adaptive=True)
        self._state: DecodeState | None = None
        self._num_steps, self._counts = 0, np.zeros((2, 0), np.int64)

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> AutoDrafter:
        """Copies and the drafters of "auto:A,B", or without names the embedded LSTM; copies use the embedded table.

        The embedded LSTM and table are left out where they were made for another target.
        """
        table, trained = None, []
        try:
            trained = [setup.make("lstm")]
            table = open_table(embedded.NGRAM, setup.target.config.vocab_size, setup.tokenizer)
        except UserError:
            trained = []
        if argument:
            trained = [setup.make(part) for part in argument.split(",")]
        return cls(LookupDrafter(table=table, word_starts=word_starts(setup.tokenizer)), trained)

    def choose_drafters(self, state: DecodeState) -> Sequence[LazyAdmission]:
        if len(self._admissions) == 1:
            return self._admissions
        if not state.greedy:
            return self._admissions[1:2]
        return self._admissions[:1] if self.emitted >= MIN_EMITTED else self._admissions

    def cheap_draft(self, state: DecodeState, budget: DraftBudget) -> Draft | None:
        """A copy after a long match. It depends on the request alone, so that a seeded request repeats."""
        if len(self.drafters) == 1 or state.host.lengths[0] <= LONG_MATCH:
            return None
        return self._admissions[0].admit_pending().long_copies(state, budget, LONG_MATCH)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        if state.greedy:
            self._num_steps += 1
            if self._state is not state or self._num_steps >= UPDATE_STEPS:
                self._update_emitted(state)
        return super().draft(state, budget)

    def _update_emitted(self, state: DecodeState) -> None:
        """Update `emitted` by the steps since the last update, of sequences that started no other request since.

        A token of a trained drafter counts as a step with no copy accepted: its step had no long copy.
        """
        proposer, lengths = state.proposer.numpy(), state.host.lengths
        is_copied = ((proposer == LOOKUP) | (proposer == NGRAM)) & (np.arange(proposer.shape[1]) < lengths[:, None])
        # of each sequence: steps with a draft, copied tokens
        counts = np.stack((state.covered.numpy(), is_copied.sum(1)))
        if self._state is state:
            steps, copied = (counts - self._counts)[:, (counts >= self._counts).all(0)]
            if steps.any():
                fade = (1 - STEP_WEIGHT) ** (steps.sum() / np.count_nonzero(steps))
                self.emitted += (1 - fade) * (1 + copied.sum() / steps.sum() - self.emitted)
        self._state, self._num_steps, self._counts = state, 0, counts
