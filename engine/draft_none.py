"""The drafter that proposes nothing: plain decoding through the same loop."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from foredraft.engine.state import DecodeState, Draft


class NoDrafter:
    name = "none"

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        pass

    def release(self, rows: Sequence[int]) -> None:
        pass

    def draft(self, state: DecodeState) -> Draft:
        return Draft.empty(state.rows, state.max_draft, state.tokens.device)
