"""A drafter around any other that chooses, in every step, how many tokens each sequence drafts.

It measures steps and the drafter's calls and chooses the draft lengths with the most expected tokens a second
(kernels/drafting/draft_length_choice.py). The more sequences share a pass, the more a further query position costs, until
nothing is drafted: then the step is plain and the drafter is not called. docs/draft-lengths.md describes the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.clock import now
from foredraft.engine.draft_length.lazy_admission import LazyAdmission
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.kernels.drafting.draft_length_choice import choose_numba, shorten_numba
from foredraft.kernels.drafting.draft_length_estimates import CREDIT, UNIT_SECONDS, Estimates, new_estimates, record_numba

# The longest draft; buffers have this size.
MAX_DRAFT = 12
# The longest `cheap_draft`: its length is not chosen by costs.
MAX_CHEAP_DRAFT = 6
# Expected tokens of a request's own record that weigh as much as the record of all requests.
POOLED_WEIGHT = 10.0
# The same for a drafter that stops early: its stops already follow the text, so recent rejections say less.
POOLED_WEIGHT_STOPS_EARLY = 30.0
# The same for lengths that repeat: the request knows only its own record, so a useless drafter has to show soon.
POOLED_WEIGHT_REPEATABLE = 3.0


class AdaptiveDrafter(Drafter):
    """Limits the drafts of `drafter` by a DraftBudget; a request's `draft_tokens` is its longest draft.

    Estimates are kept between requests, for each batch size and for greedy and sampled batches apart. `end_step` updates
    them; it must be called after each step, before a sequence starts another request.

    The output of point masses does not depend on draft lengths. Other drafters sample above temperature 0, where another
    length gives another sample of the same distribution; with `repeatable` lengths then depend on the request and the batch
    size alone, by assumed costs.

    A drafter with `stops_early` receives the measured costs in its budget. A sampled sequence that is alone in its batch
    first gets the drafter's `cheap_draft`, if there is one.

    Parameters
    ----------
    drafter : Drafter
    clock : callable
        Returns seconds.

    Attributes
    ----------
    repeatable : bool
        Set before a state is decoded whose requests have seeds.
    """

    def __init__(self, drafter: Drafter, clock: Callable[[], float] = now):
        self.drafter, self.name, self.repeatable, self._clock = drafter, drafter.name, False, clock
        self.capabilities = drafter.capabilities
        self._admission = LazyAdmission(drafter)
        self._all_estimates: dict[tuple[int, int, bool], Estimates] = {}
        # of every sequence ever admitted; self._requests is the view of this batch
        self._all_requests = np.zeros((0, 3))
        self._state: DecodeState | None = None
        self._admitted: set[int] = set()
        # further steps that reuse the last choice; whether this step does
        self._num_reuses, self._is_reused = 0, False
        _compile()

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        self._admission.admit(sequences, sources, encoded)
        self._reserve(max(sequences) + 1)
        self._admitted.update(sequences)

    def release(self, sequences: Sequence[int]) -> None:
        self._admission.release(sequences)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        # _excluded: seconds that are no part of the step
        self._start, self._excluded, self._drafting = self._clock(), 0.0, 0.0
        if self._state is not state:
            self._attach(state)
        if self._is_greedy is not state.greedy:
            self._select_estimates(state)
        if self._admitted:
            self._start_requests()
        if self._has_cheap_drafts and (draft := self._cheap_draft(state)) is not None:
            return draft
        self._is_reused = self._num_reuses > 0
        if self._is_reused:
            self._num_reuses -= 1
        else:
            position_cost, token_cost, self._is_drafting, self._num_reuses = choose_numba(
                *self._views, self._draft_lengths, self._max_tokens, self._requests, self._estimates, self._pooled_weight,
                self._is_fixed)
            self._budget.costs = min(position_cost, 1.0), token_cost
        if not self._is_drafting:
            self._drafted = self._read = self._zeros
            return self._no_draft
        draft = self._call_drafter(state)
        if self._is_fixed and state.batch_size == 1:
            # nothing to record; draft.lengths.numpy() would take as long as some kernels
            self._drafted = self._read = self._zeros
            return draft
        self._drafted = self._read = draft.lengths.numpy()
        if state.greedy or draft.logits is None:
            # the drafter stopped by the mean cost of a position; the pass costs more by whole tiles
            if len(self._read) > 1 or self._read[0] != self._draft_lengths[0]:
                self._drafted = self._drafted.copy()
                shorten_numba(self._drafted, self._requests, self._estimates, self._pooled_weight, self._read)
        elif not self._read.all():
            # a sequence without a draft samples as in a plain step, whatever the other sequences draft
            draft.dense = torch.from_numpy(draft.dense.numpy() & (self._read > 0))
        return draft

    def end_step(self) -> None:
        """Update the estimates by the step of the last `draft`."""
        if not self._is_drafting and (self._is_reused or self._is_fixed):
            return
        seconds = 0.0 if self._start is None else self._clock() - self._start - self._excluded
        record_numba(*self._verified, self._drafted, self._read, self._draft_lengths, seconds, self._drafting,
                     self._requests, self._estimates, self._is_fixed)

    def _call_drafter(self, state: DecodeState) -> Draft:
        """The drafter's draft; measures its time and that of pending admissions."""
        start = self._clock()
        self._admission.admit_pending()
        admitted = self._clock()
        draft = self.drafter.draft(state, self._budget)
        self._drafting = self._clock() - admitted
        # the time of admissions is excluded from the step's time and deducted from the exploration credit
        self._excluded += admitted - start
        scalars = self._estimates.scalars
        if scalars[CREDIT] == 0 < scalars[UNIT_SECONDS]:
            scalars[CREDIT] -= (admitted - start) / scalars[UNIT_SECONDS]
        return draft

    def _cheap_draft(self, state: DecodeState) -> Draft | None:
        """The drafter's `cheap_draft`, if it has one; nothing is chosen or recorded in its step."""
        self._draft_lengths[0], chosen = min(self._max_tokens[0], MAX_CHEAP_DRAFT), self._draft_lengths[0]
        draft = self._admission.admit_pending().cheap_draft(state, self._budget)
        self._draft_lengths[0] = chosen
        if draft is None or draft.lengths[0] == 0:
            return None
        self._is_drafting, self._is_reused = False, True
        return draft

    def _start_requests(self) -> None:
        """Forget the records of sequences that were admitted since the last step."""
        if self._is_fixed:
            # reuses that do not happen were counted as steps without a draft
            self._requests[:, 2] -= self._num_reuses
        started = list(self._admitted)
        self._all_requests[started] = 0
        self._admitted.clear()
        self._num_reuses = 0
        # no costs from the first step of most sequences: its keys and values are in no CPU cache
        self._start = None if 2 * len(started) > len(self._draft_lengths) else self._start

    def _reserve(self, B: int) -> None:
        if B > len(self._all_requests):
            self._all_requests = np.concatenate((self._all_requests, np.zeros((B - len(self._all_requests), 3))))

    def _select_estimates(self, state: DecodeState) -> None:
        """Use the estimates of batches of this kind; a batch may change from greedy to sampled as its requests change."""
        B, K = state.batch_size, state.max_draft
        key = B, K, state.greedy
        if key not in self._all_estimates:
            self._all_estimates[key] = new_estimates(B, K)
        self._requests, self._estimates = self._all_requests[:B], self._all_estimates[key]
        self._is_fixed = self.repeatable and not state.greedy and not self.capabilities.point_masses
        self._pooled_weight = (POOLED_WEIGHT_REPEATABLE if self._is_fixed else POOLED_WEIGHT_STOPS_EARLY
                               if self.capabilities.stops_early else POOLED_WEIGHT)
        self._has_cheap_drafts = B == 1 and not state.greedy
        self._is_greedy, self._num_reuses = state.greedy, 0
        self._all_requests[:, 2] = 0

    def _attach(self, state: DecodeState) -> None:
        """Keep views of a new state's tensors."""
        self._reserve(state.batch_size)
        self._views = tuple(tensor.numpy() for tensor in (state.lengths, state.limits, state.finished))
        self._verified = state.host.last_tested, state.host.last_accepted
        self._max_tokens, self._draft_lengths = state.host.draft_tokens, state.host.draft_tokens.copy()
        self._budget, self._zeros = DraftBudget(self._draft_lengths), np.zeros(state.batch_size, np.int64)
        self._admitted = set(range(state.batch_size))
        self._no_draft, self._drafted, self._read = Draft.empty(state.batch_size, 0), self._zeros, self._zeros
        self._state, self._is_greedy = state, None


def _compile() -> None:
    """Compile the kernels, or load them from the cache, before the first step."""
    one, zero, requests, estimates = np.ones(1, np.int64), np.zeros(1, np.int64), np.zeros((1, 3)), new_estimates(1, 1)
    choose_numba(one, one, np.ones(1, bool), zero, zero, requests, estimates, POOLED_WEIGHT, False)
    shorten_numba(zero, requests, estimates, POOLED_WEIGHT, one)
    record_numba(zero, zero, zero, zero, zero, 0.0, 0.0, requests, estimates, False)
