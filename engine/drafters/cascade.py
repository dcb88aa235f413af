"""A cascade: several drafters in an order; in every step each sequence takes the first draft that is long enough.

For example copies of the source first, then a neural drafter, then an n-gram table. A drafter is called only for the
sequences that those before it left without a long draft.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.draft_length.lazy_admission import LazyAdmission
from foredraft.engine.protocols import Capabilities, Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError

# Tokens that make a point-mass draft long enough. Drafters that stop early reach it only where acceptance is likely.
LONG_DRAFT = 3


class CascadeDrafter(Drafter):
    """Calls `drafters` in order. A draft shorter than `long_draft` and than the sequence may draft is kept only if no
    later drafter has a longer or a sampled one.

    Lossless at every temperature: only point masses are ever replaced. A sampled draft is kept, however short: to drop
    tokens because of what was sampled would change the distribution.
    """

    def __init__(self, drafters: Sequence[Drafter], long_draft: int = LONG_DRAFT):
        self.drafters, self.long_draft = list(drafters), long_draft
        self._admissions = [LazyAdmission(drafter) for drafter in drafters]
        self.name = "cascade:" + ",".join(drafter.name for drafter in self.drafters)
        parts = [drafter.capabilities for drafter in self.drafters]
        self.capabilities = Capabilities(point_masses=all(part.point_masses for part in parts),
                                         stops_early=any(part.stops_early for part in parts))

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> CascadeDrafter:
        return cls(make_drafters(name, argument, setup))

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        for admission in self._admissions:
            admission.admit(sequences, sources, encoded)

    def release(self, sequences: Sequence[int]) -> None:
        for admission in self._admissions:
            admission.release(sequences)

    def choose_drafters(self, state: DecodeState) -> Sequence[LazyAdmission]:
        """The drafters to call in this step, in order."""
        return self._admissions

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        admissions = self.choose_drafters(state)
        if len(admissions) == 1:
            # no comparison, which would take longer than a copy
            return admissions[0].admit_pending().draft(state, budget)
        allowed = state.allowed(budget).numpy()
        is_open, inner = allowed > 0, DraftBudget(allowed.copy(), None if budget is None else budget.costs)
        # the first drafter's buffers are kept; a sequence of a later, better draft is copied into them
        best: Draft | None = None
        for admission in admissions:
            if best is not None and not is_open.any():
                break
            inner.max_tokens[~is_open] = 0
            draft = admission.admit_pending().draft(state, inner)
            lengths = draft.lengths.numpy()
            is_sampled = draft.dense.numpy() & (lengths > 0)
            if best is None:
                best, best_lengths = draft, lengths
            elif (is_better := is_open & (is_sampled | (lengths > best_lengths))).any():
                _copy_sequences(draft, best, torch.from_numpy(is_better))
            is_open &= ~(is_sampled | (best_lengths >= np.minimum(allowed, self.long_draft)))
        return best


def _copy_sequences(source: Draft, to: Draft, sequences: Tensor) -> None:
    """Copy the drafts of some sequences, [B] bool."""
    for name in ("tokens", "lengths", "dense", "proposer"):
        getattr(to, name)[sequences] = getattr(source, name)[sequences]
    if source.logits is None:
        return
    if to.logits is None:
        to.logits, to.lse = source.logits, source.lse
    else:
        to.logits[sequences], to.lse[sequences] = source.logits[sequences], source.lse[sequences]


def make_drafters(name: str, argument: str, setup: DrafterSetup) -> list[Drafter]:
    """The drafters of "name:A,B": two or more, no tree drafter, not "none".

    Raises
    ------
    UserError
        If there are fewer than two, or one that cannot be combined.
    """
    drafters = [setup.make(part) for part in argument.split(",")]
    if len(drafters) < 2 or any(drafter.name == "none" for drafter in drafters):
        raise UserError(f"drafter '{name}:{argument}': name two or more drafters with commas "
                        "between, as in cascade:lookup,lstm")
    if any(drafter.capabilities.tree_drafts for drafter in drafters):
        raise UserError(f"drafter '{name}:{argument}': trees cannot be combined with other drafters; use "
                        "the tree drafter alone")
    return drafters
