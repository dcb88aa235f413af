"""The drafter that proposes nothing: plain decoding through the same loop."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from torch import Tensor

from foredraft.engine.protocols import Capabilities, Drafter
from foredraft.engine.state import DecodeState, Draft, DraftBudget


class NoDrafter(Drafter):
    """Keeps one empty Draft for every state, so that a step allocates nothing."""

    name = "none"
    capabilities = Capabilities(point_masses=True)

    def __init__(self):
        self.drafts: WeakKeyDictionary[DecodeState, Draft] = WeakKeyDictionary()

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        pass

    def release(self, sequences: Sequence[int]) -> None:
        pass

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        if state not in self.drafts:
            self.drafts[state] = Draft.empty(state.batch_size, state.max_draft, state.tokens.device)
        return self.drafts[state]
