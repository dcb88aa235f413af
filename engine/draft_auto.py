"""drafter="auto": what drafts, by what is decoded and by what there is; adaptive.py settles how much, down to nothing.

Greedy rows copy, for a copy costs nothing and is long where a target copies; where copies turn out short the trained
drafters are asked too, after them. Sampled rows, whose copies are soon refused, take a trained drafter's draws. This is the
lesson of `foredraft bench methods` (the README's table); lengths by measured costs keep it right elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from foredraft.engine.admissions import Admissions
from foredraft.engine.decode import Drafter
from foredraft.engine.draft_cascade import CascadeDrafter
from foredraft.engine.state import DecodeState, Draft

# Ids that a round with a copy must emit for copies to do alone, how many they are taken to emit at first, and how fast their
# running mean moves: a trained drafter reads a source, which costs a round or two, not for a few copies that fell.
COPIES, START, RATE = 2.0, 4.0, 0.02


class AutoDrafter(CascadeDrafter):
    """Asks `copying` (lookup, a table) where rows are greedy, and those `trained` where it is not enough; where rows are
    sampled the first of those trained, or `copying` without any.

    A batch with a sampled row goes by the second rule. Greedy ids, and sampled ones without `trained`, are plain decoding's.
    What a trained drafter draws is dense: lawful without a seed; a seeded request repeats, by itself and the number of rows
    of its batch, whatever is beside it (adaptive.py). emitted: ids of a greedy round by copies, a running mean.
    """

    def __init__(self, copying: Drafter, trained: Sequence[Drafter] = ()):
        super().__init__([copying, *trained])
        self.name, self.emitted = "auto:" + ",".join(drafter.name for drafter in self.drafters), START
        self._state: DecodeState | None = None
        # of the last draft, what each row's rounds then were; -1: it was not asked
        self._asked: list[int] = []

    def turns(self, state: DecodeState) -> Sequence[Admissions]:
        if len(self._admissions) == 1:
            return self._admissions
        if not state.greedy:
            return self._admissions[1:2]
        return self._admissions[:1] if self.emitted >= COPIES else self._admissions

    def draft(self, state: DecodeState) -> Draft:
        if not state.greedy:
            self._state = None
            return super().draft(state)
        rounds = state.rounds.tolist()
        if self._state is state:
            self._learn(rounds, state.last_counts.tolist())
        draft = super().draft(state)
        self._asked = [now if K else -1 for now, K in zip(rounds, state.draft_tokens.tolist(), strict=True)]
        self._state = state
        return draft

    def _learn(self, rounds: list[int], counts: list[int]) -> None:
        """counts [B]: ids that the last round emitted, by a draft of ours if a row's rounds [B] are one more than when it
        was asked. Rows that took another's draft had no copy worth the name."""
        if known := [1 if passed else count for now, asked, passed, count in zip(
                rounds, self._asked, self.passed, counts, strict=True) if now == asked + 1 > 0]:
            self.emitted += RATE * (sum(known) / len(known) - self.emitted)
