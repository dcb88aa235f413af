"""The draft-length policy: how many tokens each sequence drafts in each step, down to none (docs/draft-lengths.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.draft_length.lazy_admission import Admissions
from foredraft.engine.protocols import Drafter
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.kernels.drafting.draft_length import EXPLORE, Costs, choose, choose_alone, learn, new_memory

# K where the request sets no limit.
MAX_DRAFT = 12


class DraftLengthPolicy(Drafter):
    """Wraps a drafter and decides, step by step, which sequences draft and how many tokens at most.

    A step in which no sequence drafts does not call the drafter. Estimates are kept between requests, for each batch size
    and for greedy and sampled batches apart. The caller calls `end_step` after each step, before it admits or releases.

    Parameters
    ----------
    drafter : Drafter
        One with the method `num_arms(greedy)` drafts in several ways, selected by its attribute `arm`.
    clock : Callable
        Returns seconds.

    Attributes
    ----------
    repeatable : bool
        The draft lengths of sampled sequences depend on their request and the batch size alone, so that a seeded request
        repeats. Point masses, whose lengths do not change the output, ignore it.
    """

    def __init__(self, drafter: Drafter, clock: Callable[[], float] = perf_counter):
        self.drafter, self.name, self.capabilities = drafter, drafter.name, drafter.capabilities
        self.repeatable, self._clock, self._admissions = False, clock, Admissions(drafter)
        self._memories: dict[tuple[int, int, bool], tuple[np.ndarray, ...]] = {}
        self._state: DecodeState | None = None
        self._thinking_least = np.inf
        self._admitted: set[int] = set()

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        self._admissions.admit(sequences, sources, encoded)
        self._admitted.update(sequences)

    def release(self, sequences: Sequence[int]) -> None:
        self._admissions.release(sequences)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        self._began, self._drafting, self._admitting = self._clock(), 0.0, 0.0
        if self._state is not state or self._greedy is not state.greedy:
            self._enter(state)
        self._timed = not self._admitted
        if self._admitted:
            self._records[list(self._admitted)] = 0
            self._admitted.clear()
            self._held = self._hold = 0
        self._holds = self._held < self._hold
        if self._holds:
            self._held += 1
        else:
            self._choose(state)
        if not self._choice:
            self._drafted = self._nothing
            return self._none
        since = self._clock()
        self._admissions.show()
        if self._is_arms:
            self.drafter.arm = self._choice - 1
        shown = self._clock()
        draft = self.drafter.draft(state, self._budget)
        self._admitting, self._drafting = shown - since, self._clock() - shown
        self._drafted = draft.lengths.numpy()
        if draft.logits is not None and not self._drafted.all():
            # a sequence without a draft is sampled as in a plain step, whichever sequences draft beside it
            draft.dense = torch.from_numpy(draft.dense.numpy() & (self._drafted > 0))
        return draft

    def end_step(self) -> None:
        """Learn from the step that began with the last `draft`."""
        if self._holds:
            return
        now = self._clock()
        seconds = now - self._began - self._thinking - self._drafting - self._admitting if self._timed else 0.0
        learn(self._drafted, self._accepted, self._max_tokens, self._choice, self._once, self._running, seconds,
              self._drafting, self._admitting, self._records, *self._memory, self._alone)
        # choosing and learning may take as much time as exploring does; their least time, for a pause is none of theirs
        self._thinking_least = min(self._thinking_least, self._clock() - now + self._thinking)
        self._hold = 0 if self._once else int(self._thinking_least / (EXPLORE * max(now - self._began, 1e-9)))

    def _choose(self, state: DecodeState) -> None:
        if self._alone:
            self._choice, *costs = choose_alone(*self._views, self._records, state.max_draft, self._max_tokens)
            self._once = True
        else:
            self._running = state.batch_size - np.count_nonzero(self._views[2])
            self._choice, self._once, *costs = choose(
                *self._views, self._records, *self._memory, self._held, self._max_tokens)
        self._held, self._budget.costs = 0, Costs(*costs)
        self._thinking = self._clock() - self._began

    def _enter(self, state: DecodeState) -> None:
        """Start on a state, or on another temperature of it; all of its requests count as new."""
        B, K, host = state.batch_size, state.max_draft, state.host
        self._state, self._greedy = state, state.greedy
        arms = getattr(self.drafter, "num_arms", None)
        self._is_arms = arms is not None
        key = B, K, state.greedy
        if key not in self._memories:
            self._memories[key] = new_memory(arms(state.greedy) if arms else 1, B, K)
        self._memory = self._memories[key]
        self._views = host.lengths, state.limits.numpy(), state.finished.numpy(), host.draft_tokens
        self._accepted, self._records = host.last_accepted, np.zeros((B, 2))
        self._max_tokens, self._nothing = np.zeros(B, np.int64), np.zeros(B, np.int64)
        self._budget, self._none = DraftBudget(self._max_tokens), Draft.empty(B, 0)
        self._alone = self.repeatable and not state.greedy and not self.capabilities.point_masses
        self._admitted, self._hold, self._held, self._thinking, self._running = set(range(B)), 0, 0, 0.0, B
