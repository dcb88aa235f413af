"""Draft lengths that adapt: a drafter around any other that chooses, in every step, how many tokens each sequence drafts.

Costs are measured online (kernels/drafting/draft_length_costs.py): seconds of steps by running sequences and query
positions, and seconds of the drafter's calls. So drafts follow the load: the more sequences share a pass, the more a further
query position costs, until nothing is drafted. A step in which no sequence drafts calls no drafter and is a plain step. A
few steps after it are plain too, unless a request starts, because choosing and learning take time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.draft_length.lazy_admission import Admissions
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.kernels.drafting.draft_length_costs import CREDIT, UNIT, learn_numba, new_memory, pace_numba, trim_numba

# The longest draft.
WIDEST = 12
# The longest `first_draft`, which is neither chosen nor learned from.
FIRST_WIDTH = 6
# How many tokens of its own a sequence's record needs to weigh as much as the record of all sequences. A drafter that
# stops early already tells likely drafts from unlikely ones: its last rejections say little about the next draft. Where a
# request knows only its own record, a useless drafter must show soon.
OWN, OWN_CONFIDENT, OWN_ALONE = 10.0, 30.0, 3.0


class AdaptiveDrafter(Drafter):
    """Wraps `drafter` and limits its drafts by a DraftBudget; the request's own `draft_tokens` are the upper bound.

    Whoever runs steps calls `end_step` after each, before a sequence starts another request: this is where it learns. What
    was learned is kept between requests, for each batch size and for greedy and sampled batches apart.

    The output of point masses does not depend on the lengths. Above temperature 0 other drafters sample their drafts, and
    another length gives another output of the same distribution; with `repeatable` lengths then depend on the request and
    the batch size alone, by fixed costs.

    A drafter with `stops_early` receives the measured costs in its budget. A sampled sequence that is alone first gets the
    drafter's `first_draft`, if there is one. clock: seconds.
    """

    def __init__(self, drafter: Drafter, clock: Callable[[], float] = perf_counter):
        self.drafter, self.name, self.repeatable, self._clock = drafter, drafter.name, False, clock
        self.capabilities = drafter.capabilities
        self._admissions = Admissions(drafter)
        self._memories: dict[tuple[int, int, bool], tuple[np.ndarray, ...]] = {}
        self._rows = np.zeros((0, 3))
        self._state: DecodeState | None = None
        self._admitted: set[int] = set()
        # rounds still to come that are neither chosen nor learned from; whether this is one
        self._rest, self._rests = 0, False
        one, none, rows, memory = np.ones(1, np.int64), np.zeros(1, np.int64), np.zeros((1, 3)), new_memory(1, 1)
        pace_numba(one, one, np.ones(1, bool), none, none, rows, *memory, OWN, False)
        trim_numba(none, rows, *memory, OWN, one)
        learn_numba(none, none, none, none, none, 0.0, 0.0, rows, *memory, False)

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        self._admissions.admit(rows, sources, encoded)
        self._reserve(max(rows) + 1)
        # what a row's `draft_tokens` then says is the widest draft of its request
        self._admitted.update(rows)

    def release(self, rows: Sequence[int]) -> None:
        self._admissions.release(rows)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        self._began, self._paused, self._drafting = self._clock(), 0.0, 0.0
        if self._state is not state:
            self._enter(state)
        if self._is_greedy is not state.greedy:
            self._turn(state)
        if self._admitted:
            if self._is_fixed:
                self._memory[0][:, 2] -= self._rest
            started = list(self._admitted)
            self._rows[started] = 0
            self._admitted.clear()
            self._rest = 0
            # the first round of most rows reads keys and values that no cache holds yet
            self._began = None if 2 * len(started) > len(self._widths) else self._began
        if self._is_offered and (draft := self._first(state)) is not None:
            return draft
        self._rests = self._rest > 0
        if self._rests:
            self._rest -= 1
        else:
            price, each, self._drafts, self._rest = pace_numba(
                *self._views, self._widths, self._widest, *self._memory, self._own, self._is_fixed)
            self._budget.costs = min(price, 1.0), each
        if not self._drafts:
            self._drafted = self._read = self._nothing
            return self._none
        since = self._clock()
        self._admissions.show()
        shown = self._clock()
        draft = self.drafter.draft(state, self._budget)
        self._drafting = self._clock() - shown
        # a source is no part of a round, but of what a probe costs, which has just taken all credit
        self._paused += shown - since
        clock = self._memory[-1]
        if clock[CREDIT] == 0 < clock[UNIT]:
            clock[CREDIT] -= (shown - since) / clock[UNIT]
        if self._is_fixed and state.batch_size == 1:
            # nothing more to learn or to mend: to ask for an array that is not in a cache takes as long as some kernels
            self._drafted = self._read = self._nothing
            return draft
        self._drafted = self._read = draft.lengths.numpy()
        if state.greedy or draft.logits is None:
            # a drafter that ends a draft by itself knows a row's price, not where the pass's steps are
            if len(self._read) > 1 or self._read[0] != self._widths[0]:
                self._drafted = self._drafted.copy()
                trim_numba(self._drafted, *self._memory, self._own, self._read)
        elif not self._read.all():
            # a row without a draft draws as in a round where nobody drafts, whoever drafts beside it
            draft.dense = torch.from_numpy(draft.dense.numpy() & (self._read > 0))
        return draft

    def _first(self, state: DecodeState) -> Draft | None:
        """The drafter's `first_draft`, if it has one: that round is neither chosen nor learned from."""
        self._widths[0], own = min(self._widest[0], FIRST_WIDTH), self._widths[0]
        draft = self._admissions.show().first_draft(state, self._budget)
        if draft is None or draft.lengths[0] == 0:
            self._widths[0] = own
            return None
        self._widths[0], self._drafts, self._rests = 0, False, True
        return draft

    def end_step(self) -> None:
        """Learn from the round that began with the last `draft`."""
        if not self._drafts and (self._rests or self._is_fixed):
            return
        seconds = 0.0 if self._began is None else self._clock() - self._began - self._paused
        learn_numba(*self._verified, self._drafted, self._read, self._widths, seconds, self._drafting, *self._memory,
                    self._is_fixed)

    def _reserve(self, rows: int) -> None:
        if rows > len(self._rows):
            self._rows = np.concatenate((self._rows, np.zeros((rows - len(self._rows), 3))))

    def _turn(self, state: DecodeState) -> None:
        """Use what was learned of batches of this kind; a batch may turn from greedy to sampled as requests change."""
        B, K = state.batch_size, state.max_draft
        key = B, K, state.greedy
        if key not in self._memories:
            self._memories[key] = new_memory(B, K)
        self._memory = self._rows[:B], *self._memories[key]
        self._is_fixed = self.repeatable and not state.greedy and not self.drafter.capabilities.point_masses
        self._own = OWN_ALONE if self._is_fixed else OWN_CONFIDENT if self.drafter.capabilities.stops_early else OWN
        self._is_offered = B == 1 and not state.greedy
        self._is_greedy, self._rest = state.greedy, 0
        self._rows[:, 2] = 0

    def _enter(self, state: DecodeState) -> None:
        """Start on a state: views of its tensors."""
        self._reserve(state.batch_size)
        self._views = tuple(tensor.numpy() for tensor in (state.lengths, state.limits, state.finished))
        self._verified = state.host.last_tested, state.host.last_accepted
        self._widest, self._widths = state.host.draft_tokens, state.host.draft_tokens.copy()
        self._budget, self._nothing = DraftBudget(self._widths), np.zeros(state.batch_size, np.int64)
        self._admitted = set(range(state.batch_size))
        self._none, self._drafted, self._read = Draft.empty(state.batch_size, 0), self._nothing, self._nothing
        self._state, self._is_greedy = state, None
