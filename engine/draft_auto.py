"""drafter="auto": what drafts, by what is decoded and by what there is; adaptive.py settles how much, down to nothing.

The choice is the lesson of `foredraft bench methods` (the README's table); the lengths, from costs that are measured as it
goes, keep it right where a target copies less, or where a batch makes every further row dear.
"""

from __future__ import annotations

from collections.abc import Sequence

from foredraft.engine.admissions import Admissions
from foredraft.engine.decode import Drafter
from foredraft.engine.draft_cascade import CascadeDrafter
from foredraft.engine.state import DecodeState


class AutoDrafter(CascadeDrafter):
    """Asks `copying` (lookup, a table) where rows are greedy, then those `trained` where no copy is long; where rows are
    sampled the first of those trained, or `copying` without any.

    A batch with a sampled row goes by the second rule. Greedy ids, and sampled ones without `trained`, are plain decoding's.
    What a trained drafter draws is dense: lawful without a seed; a seeded request repeats, by itself and the number of rows
    of its batch, whatever is beside it (adaptive.py).
    """

    def __init__(self, copying: Drafter, trained: Sequence[Drafter] = ()):
        super().__init__([copying, *trained])
        self.name = "auto:" + ",".join(drafter.name for drafter in self.drafters)

    def turns(self, state: DecodeState) -> Sequence[Admissions]:
        return self._admissions if state.greedy or len(self._admissions) == 1 else self._admissions[1:2]
