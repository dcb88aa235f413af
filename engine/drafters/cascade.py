"""The cascade: several drafters in an order, of which each row takes, every round, the first with enough to say.

Meant for a copy of the source where a long one is certain, else a neural drafter, else a table: a drafter is asked only for
the rows that those before it left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.draft_length.lazy_admission import Admissions
from foredraft.engine.protocols import Capabilities, Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError

# Ids that a draft of point masses must have to be taken before the next drafter is asked. Drafters that stop where the next
# id does not pay reach it only where they are sure.
LONG = 3


class CascadeDrafter(Drafter):
    """Asks `drafters` in turn. A draft shorter than `long`, or than the row may draft, waits, and is taken if nobody has
    more.

    Lossless at every temperature: only point masses are ever passed over. A sampled draft, even one cut short by its own end
    token, is kept: to drop what was drawn for what it is would bend the distribution.
    """

    def __init__(self, drafters: Sequence[Drafter], long: int = LONG):
        self.drafters, self.long = list(drafters), long
        self._admissions = [Admissions(drafter) for drafter in drafters]
        self.name = "cascade:" + ",".join(drafter.name for drafter in self.drafters)
        found = [drafter.capabilities for drafter in self.drafters]
        self.capabilities = Capabilities(point_masses=all(one.point_masses for one in found),
                                         stops_early=any(one.stops_early for one in found))

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> CascadeDrafter:
        return cls(make_parts(name, argument, setup))

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        for admissions in self._admissions:
            admissions.admit(rows, sources, encoded)

    def release(self, rows: Sequence[int]) -> None:
        for admissions in self._admissions:
            admissions.release(rows)

    def turns(self, state: DecodeState) -> Sequence[Admissions]:
        """Who is asked, in turn."""
        return self._admissions

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        turns = self.turns(state)
        if len(turns) == 1:
            # one drafter: no comparison, which would take longer than a copy
            return turns[0].show().draft(state, budget)
        allowed = state.allowed(budget).numpy()
        waiting, inner = allowed > 0, DraftBudget(allowed.copy(), None if budget is None else budget.costs)
        # the first draft's buffers are kept; a sequence of a later, better draft is copied into them
        taken: Draft | None = None
        for admissions in turns:
            if taken is not None and not waiting.any():
                break
            inner.max_tokens[~waiting] = 0
            draft = admissions.show().draft(state, inner)
            lengths = draft.lengths.numpy()
            drawn = draft.dense.numpy() & (lengths > 0)
            if taken is None:
                taken, kept = draft, lengths
            elif (better := waiting & (drawn | (lengths > kept))).any():
                _move(draft, taken, torch.from_numpy(better))
            waiting &= ~(drawn | (kept >= np.minimum(allowed, self.long)))
        return taken


def _move(draft: Draft, into: Draft, rows: Tensor) -> None:
    """Put the given rows [B] bool of a draft in the place of another's."""
    for name in ("tokens", "lengths", "dense", "proposer"):
        getattr(into, name)[rows] = getattr(draft, name)[rows]
    if draft.logits is None:
        return
    if into.logits is None:
        into.logits, into.lse = draft.logits, draft.lse
    else:
        into.logits[rows], into.lse[rows] = draft.logits[rows], draft.lse[rows]


def make_parts(name: str, argument: str, setup: DrafterSetup) -> list[Drafter]:
    """The drafters that "name:A,B" lists: two or more, none of which drafts trees or nothing."""
    drafters = [setup.make(part) for part in argument.split(",")]
    if len(drafters) < 2 or any(drafter.name == "none" for drafter in drafters):
        raise UserError(f"drafter '{name}:{argument}': name two or more drafters with commas "
                        "between, as in cascade:lookup,lstm")
    if any(drafter.capabilities.tree_drafts for drafter in drafters):
        raise UserError(f"drafter '{name}:{argument}': trees cannot be combined with other drafters; use "
                        "the tree drafter alone")
    return drafters
