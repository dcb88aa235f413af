"""drafter="auto": copies of the source and trained drafters, in the ways among which the draft-length policy chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foredraft import embedded
from foredraft.engine.draft_length.lazy_admission import Admissions
from foredraft.engine.drafters.cascade import LONG, CascadeDrafter
from foredraft.engine.drafters.lookup import LookupDrafter
from foredraft.engine.drafters.ngram import open_table
from foredraft.engine.protocols import Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError


class AutoDrafter(CascadeDrafter):
    """Greedy batches have two arms: copies alone, and the cascade of copies and trained drafters. Sampled batches have one:
    the first trained drafter, and for a sequence alone in its batch a copy after LONG matching tokens. Without trained
    drafters everything is copied.

    A copy after a long match depends on its request alone, so that seeded requests repeat.
    """

    def __init__(self, copying: Drafter, trained: Sequence[Drafter] = ()):
        super().__init__([copying, *trained])
        self.name, self.arm = "auto:" + ",".join(drafter.name for drafter in self.drafters), 0
        self.capabilities = replace(self.capabilities, adaptive=True)

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> AutoDrafter:
        """With the embedded table and LSTM if they were made for this target, or with the drafters of "auto:A,B"."""
        table, trained = None, []
        try:
            lstm = setup.make("lstm")
            table, trained = open_table(embedded.NGRAM, setup.target.config.vocab_size, setup.tokenizer), [lstm]
        except UserError:
            pass  # made for another target
        if argument:
            trained = [setup.make(part) for part in argument.split(",")]
        return cls(LookupDrafter(table=table), trained)

    def num_arms(self, greedy: bool) -> int:
        return 2 if greedy and len(self.drafters) > 1 else 1

    def turns(self, state: DecodeState) -> Sequence[Admissions]:
        if len(self.drafters) == 1:
            return self._admissions
        return self._admissions[: 1 if self.arm == 0 else None] if state.greedy else self._admissions[1:2]

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        if not state.greedy and state.batch_size == 1 < len(self.drafters) and state.host.lengths[0] > LONG:
            copies = self._admissions[0].show().long_copies(state, budget, LONG)
            if copies.lengths[0]:
                return copies
        return super().draft(state, budget)
