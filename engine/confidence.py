"""What a neural drafter remembers in order to stop its drafts early (kernels/confidence.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foredraft.engine.state import DecodeState
from foredraft.kernels.confidence import Stops


class Confidence:
    """cost, each: of a further row of the target's pass and of a further id drafted, as shares of a plain round; with cost 0
    a draft ends at the row's own length, or at the state's `fallback`."""

    def __init__(self):
        self.cost = self.each = 0.0
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

    def stops(self, state: DecodeState) -> Stops:
        """For a round of the state."""
        rows, width = self._arrays[1].shape
        if state.rows > rows or state.max_draft > width:
            self._grow(max(rows, state.rows), max(width, state.max_draft))
        host = state.host
        return Stops(float(state.fallback), float(self.cost), float(self.each), *self._arrays, host.rounds, host.last_tested,
                     host.last_accepted)


class Confident:
    """A drafter that ends its drafts by its own confidence; `confidence` None: it does not, and has no costs to be told."""

    confidence: Confidence | None

    @property
    def cost(self) -> float:
        """Confidence's."""
        return self.confidence.cost

    @cost.setter
    def cost(self, cost: float) -> None:
        self.confidence.cost = cost

    @property
    def each(self) -> float:
        """Confidence's."""
        return self.confidence.each

    @each.setter
    def each(self, each: float) -> None:
        self.confidence.each = each
