"""drafter="auto": what drafts, by what is decoded and by what there is; adaptive.py settles how much, down to nothing.

Greedy rows copy, for a copy costs nothing and is long where a target copies; where copies turn out short the trained
drafters are asked too, after them. Sampled rows, whose copies are soon refused, take a trained drafter's draws, and copies
only after a long match where a request is decoded alone. This is the lesson of `foredraft bench methods` (the README's
table); lengths by measured costs keep it right elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from foredraft import embedded
from foredraft.engine.draft_length.lazy_admission import Admissions
from foredraft.engine.drafters.cascade import CascadeDrafter
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.ngram import open_table
from foredraft.engine.protocols import Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError
from foredraft.ngram_native.prompt_lookup.source_index import LOOKUP, NGRAM

# Ids that a round with a copy must emit for copies to do alone, how many they are taken to emit at first, and how fast their
# running mean moves: a trained drafter reads a source, which costs a round or two, not for a few copies that fell.
COPIES, START, RATE = 2.0, 4.0, 0.02
# Greedy rounds between looks at what copies do.
LOOK = 16
# A sampled row's copy follows so many ids: a shorter match is right less often than a trained drafter.
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
        self.name, self.emitted = "auto:" + ",".join(drafter.name for drafter in self.drafters), START
        self.capabilities = replace(self.capabilities, adaptive=True)
        self._state: DecodeState | None = None
        self._rounds, self._counts = 0, np.zeros((2, 0), np.int64)

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> AutoDrafter:
        """The embedded table and LSTM where they were made for this target, or the drafters "auto:A,B"."""
        table, trained = None, []
        try:
            trained = [setup.make("lstm")]
            table = open_table(embedded.NGRAM, setup.target.config.vocab_size, setup.tokenizer)
        except UserError:
            # made for another target
            trained = []
        if argument:
            trained = [setup.make(part) for part in argument.split(",")]
        return cls(LookupDrafter(table=table), trained)

    def turns(self, state: DecodeState) -> Sequence[Admissions]:
        if len(self._admissions) == 1:
            return self._admissions
        if not state.greedy:
            return self._admissions[1:2]
        return self._admissions[:1] if self.emitted >= COPIES else self._admissions

    def first_draft(self, state: DecodeState, budget: DraftBudget) -> Draft | None:
        """What a sampled row that is alone may copy at hardly any cost, by its own request and not by what others have
        taught, so that it repeats where it is seeded. (In a batch a further row costs what such copies gain.)"""
        if len(self.drafters) == 1 or state.host.lengths[0] <= LONG_MATCH:
            return None
        return self._admissions[0].show().long_copies(state, budget, LONG_MATCH)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        if state.greedy:
            self._rounds += 1
            if self._state is not state or self._rounds >= LOOK:
                self._look(state)
        return super().draft(state, budget)

    def _look(self, state: DecodeState) -> None:
        """Learn from the rounds since the last look; not from rows that began anew since. An id of a trained drafter comes
        from a round that had no copy worth the name."""
        proposer, lengths = state.proposer.numpy(), state.host.lengths
        copied = ((proposer == LOOKUP) | (proposer == NGRAM)) & (np.arange(proposer.shape[1]) < lengths[:, None])
        # of each row: rounds with a draft, copied ids
        counts = np.stack((state.covered.numpy(), copied.sum(1)))
        if self._state is state:
            rounds, kept = (counts - self._counts)[:, (counts >= self._counts).all(0)]
            if rounds.any():
                fading = (1 - RATE) ** (rounds.sum() / np.count_nonzero(rounds))
                self.emitted += (1 - fading) * (1 + kept.sum() / rounds.sum() - self.emitted)
        self._state, self._rounds, self._counts = state, 0, counts
