"""What a neural drafter remembers in order to stop its drafts early (kernels/drafting/draft_stopping.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foredraft.engine.state import DecodeState, DraftBudget
from foredraft.kernels.drafting.draft_stopping import Stops


class Confidence:
    """Of the rows; where a state knows no costs a draft ends at the row's own length, or at the state's `fallback`."""

    def __init__(self):
        self._grow(0, 0)

    def _grow(self, rows: int, width: int) -> None:
        """Room for B rows and drafts of K ids; what was learned is forgotten."""
        self._arrays = (np.zeros((rows, 3)), np.zeros((rows, width)), np.full(rows, -1), np.ones((rows, 2)))

    def admit(self, rows: Sequence[int]) -> None:
        """Other requests are in these rows."""
        records, chances, asked, _ = self._arrays
        if max(rows) >= len(asked):
            self._grow(max(rows) + 1, chances.shape[1])
        else:
            records[list(rows)], asked[list(rows)] = 0, -1

    def stops(self, state: DecodeState, budget: DraftBudget | None = None) -> Stops:
        """For a round of the state."""
        rows, width = self._arrays[1].shape
        if state.batch_size > rows or state.max_draft > width:
            self._grow(max(rows, state.batch_size), max(width, state.max_draft))
        host, costs = state.host, (budget and budget.costs) or (0.0, 0.0)
        return Stops(float(state.fallback), *map(float, costs), *self._arrays, host.num_steps, host.last_tested,
                     host.last_accepted)
