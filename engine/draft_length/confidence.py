"""Per-sequence records by which a neural drafter stops its drafts early (kernels/drafting/draft_stopping.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foredraft.engine.state import DecodeState, DraftBudget
from foredraft.kernels.drafting.draft_stopping import StopRule


class Confidence:
    """Keeps the arrays of a `StopRule` for all sequences of a drafter, from step to step."""

    def __init__(self):
        self._allocate(0, 0)

    def _allocate(self, B: int, K: int) -> None:
        """New arrays for B sequences and drafts of K tokens; all records are lost."""
        self._arrays = (np.zeros((B, 3)), np.zeros((B, K)), np.full(B, -1), np.ones((B, 2)))

    def admit(self, sequences: Sequence[int]) -> None:
        """Forget the records of sequences that start other requests."""
        records, acceptance, last_drafted, _ = self._arrays
        if max(sequences) >= len(last_drafted):
            self._allocate(max(sequences) + 1, acceptance.shape[1])
        else:
            records[list(sequences)], last_drafted[list(sequences)] = 0, -1

    def stop_rule(self, state: DecodeState, budget: DraftBudget | None = None) -> StopRule:
        """The rule for a step: by the budget's costs; without costs, by the state's `fallback` alone."""
        B, K = self._arrays[1].shape
        if state.batch_size > B or state.max_draft > K:
            self._allocate(max(B, state.batch_size), max(K, state.max_draft))
        host, costs = state.host, (budget and budget.costs) or (0.0, 0.0)
        return StopRule(float(state.fallback), *map(float, costs), *self._arrays, host.num_steps, host.last_tested,
                        host.last_accepted)
