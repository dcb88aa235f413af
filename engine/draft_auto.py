"""drafter="auto": what drafts, by what is decoded and by what there is; adaptive.py settles how much, down to nothing.

Greedy rows copy, for a copy costs nothing and is long where a target copies; where copies turn out short the trained
drafters are asked too, after them. Sampled rows, whose copies are soon refused, take a trained drafter's draws. This is the
lesson of `foredraft bench methods` (the README's table); lengths by measured costs keep it right elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foredraft.engine.admissions import Admissions
from foredraft.engine.decode import Drafter
from foredraft.engine.draft_cascade import CascadeDrafter
from foredraft.engine.state import DecodeState, Draft

# Ids that a round with a copy must emit for copies to do alone, and how fast their running mean moves.
COPIES, RATE = 2.5, 0.05


class AutoDrafter(CascadeDrafter):
    """Asks `copying` (lookup, a table) where rows are greedy, and those `trained` where it is not enough; where rows are
    sampled the first of those trained, or `copying` without any.

    A batch with a sampled row goes by the second rule. Greedy ids, and sampled ones without `trained`, are plain decoding's.
    What a trained drafter draws is dense: lawful without a seed; a seeded request repeats, by itself and the number of rows
    of its batch, whatever is beside it (adaptive.py). emitted: ids of a greedy round by copies, a running mean.
    """

    def __init__(self, copying: Drafter, trained: Sequence[Drafter] = ()):
        super().__init__([copying, *trained])
        self.name, self.emitted = "auto:" + ",".join(drafter.name for drafter in self.drafters), COPIES
        self._state: DecodeState | None = None

    def turns(self, state: DecodeState) -> Sequence[Admissions]:
        if len(self._admissions) == 1:
            return self._admissions
        if not state.greedy:
            return self._admissions[1:2]
        return self._admissions[:1] if self.emitted >= COPIES else self._admissions

    def draft(self, state: DecodeState) -> Draft:
        if state.greedy and self._state is state:
            self._learn(state.last_counts.numpy())
        draft = super().draft(state)
        self._state = state if state.greedy else None
        return draft

    def _learn(self, counts: np.ndarray) -> None:
        """counts [B]: ids that the last round emitted. Rows that took another's draft had no copy worth the name."""
        if (known := self.asked & (counts > 0)).any():
            self.emitted += RATE * (float(np.where(self.passed, 1, counts)[known].mean()) - self.emitted)
