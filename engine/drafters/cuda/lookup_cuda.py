"""Lookup and n-gram drafts, and both by turns, on a device: one kernel launch a round, by the host's rules.

Each drafter keeps one Draft for every state and writes it anew every round, so that a captured graph finds it in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from foredraft.engine.models.device_memory import check_memory
from foredraft.engine.protocols import Capabilities, Drafter
from foredraft.engine.state import PROPOSERS, DecodeState, Draft
from foredraft.kernels.core.backend import power_of_2
from foredraft.kernels.drafting.ngram_lookup_triton import Hash, ngram_lookup_triton
from foredraft.kernels.drafting.prompt_lookup_triton import prompt_lookup_triton
from foredraft.ngram_native.device_table import export_device
from foredraft.ngram_native.prompt_lookup.hash_chains import WINDOW
from foredraft.ngram_native.prompt_lookup.source_index import MAX_COUNT, PRIOR, PRIOR_CONFIDENCE
from foredraft.ngram_native.stopping import COST
from foredraft.ngram_native.table import Table

# Drafts that there is room for from the first request on.
WIDTH = 16


class _Kept:
    """One Draft of point masses for each state that is drafted for, as long as the state lives."""

    def __init__(self, name: str):
        # of a combined drafter the kernel says who proposed
        self.proposer = PROPOSERS.index(name.partition("+")[0])
        self.drafts: WeakKeyDictionary[DecodeState, Draft] = WeakKeyDictionary()

    def of(self, state: DecodeState) -> Draft:
        if state not in self.drafts:
            draft = self.drafts[state] = Draft.empty(state.batch_size, state.max_draft, state.tokens.device)
            draft.proposer.fill_(self.proposer)
        return self.drafts[state]


class LookupDrafterCuda(Drafter):
    """Copies on a device, or a table's ids where it is surer: engine/drafters/lookup.py without a history, and with confidences
    that each row learns for itself (kernels/drafting/prompt_lookup_triton.py).

    `generation` counts the buffers' changes of place: graphs captured before one hold the old place.
    """

    capabilities = Capabilities(point_masses=True)

    def __init__(self, device: torch.device | str, min_match: int = 1, max_match: int = 4, table: Table | None = None,
                 cost: float = COST):
        self.device, self.min_match, self.cost = device, min_match, cost
        self.name = "lookup" if table is None else "lookup+ngram"
        self.table = None if table is None else hashed(table, device)
        prior = [PRIOR_CONFIDENCE[min(m, len(PRIOR_CONFIDENCE) - 1)] for m in range(max_match + 1)]
        self._prior = torch.tensor([[PRIOR, PRIOR * p] for p in prior], dtype=torch.float64, device=device)
        self.generation = 0
        self._make(0, 0, WIDTH)
        self._kept = _Kept(self.name)

    def _make(self, rows: int, length: int, width: int) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=self.device)

        self.source, self.source_lengths, self.last = zeros(rows, length), zeros(rows), zeros(rows, 1 + 2 * width)
        self.tested = self._prior.repeat(rows, 1, 1)
        self.generation += 1

    def _grow(self, rows: int, length: int, width: int) -> None:
        """Room for so many rows, ids of a source and drafts, with what was there."""
        check_memory(self.device, rows * (8 * (length + 2 + 2 * width) + self._prior.nbytes),
                     f"the drafter's copies of {rows} sources of {length} tokens", "lower batch_size or max_source")
        before = self.source, self.source_lengths, self.last, self.tested
        self._make(rows, length, width)
        for new, old in zip((self.source, self.source_lengths, self.last, self.tested), before, strict=True):
            new[tuple(slice(size) for size in old.shape)] = old

    def reserve(self, rows: int, length: int) -> None:
        """Room for sources of so many ids, in steps, so that it seldom grows."""
        had_rows, had_length = self.source.shape
        if rows > had_rows or length > had_length:
            self._grow(max(rows, had_rows), max(power_of_2(length), had_length), (self.last.shape[1] - 1) // 2)

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        self.reserve(max(rows) + 1, max(len(source) for source in sources))
        for row, source in zip(rows, sources, strict=True):
            self.source[row, : len(source)] = source.to(self.device)
            self.source_lengths[row].fill_(len(source))
            self.last[row, 0].fill_(0)

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.source_lengths[row].fill_(0)

    def draft(self, state: DecodeState, budget: None = None) -> Draft:
        draft = self._kept.of(state)
        if 1 + 2 * state.max_draft > self.last.shape[1]:
            # only ever in a state's first round, which is not captured
            self._grow(*self.source.shape, state.max_draft)
        prompt_lookup_triton(
            self.source, self.source_lengths, state.tokens, state.lengths, state.finished, state.limits, state.draft_tokens,
            self.tested, self.last, self.table, state.end_token, WINDOW, self.min_match, MAX_COUNT, self.cost, draft.tokens,
            draft.lengths, draft.proposer)
        return draft


class NgramDrafterCuda(Drafter):
    """engine/drafters/ngram.py on a device: the table as one hash (ngram_native/device_table.py)."""

    name = "ngram"
    capabilities = Capabilities(point_masses=True)

    def __init__(self, table: Table, device: torch.device | str, cost: float = COST):
        self.table, self.cost = hashed(table, device), cost
        self._kept = _Kept(self.name)

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        pass

    def release(self, rows: Sequence[int]) -> None:
        pass

    def draft(self, state: DecodeState, budget: None = None) -> Draft:
        draft = self._kept.of(state)
        ngram_lookup_triton(
            self.table, state.tokens, state.lengths, state.finished, state.limits, state.draft_tokens, state.end_token,
            self.cost, draft.tokens, draft.lengths)
        return draft


def hashed(table: Table, device: torch.device | str) -> Hash:
    """The table's contexts on a device."""
    found = export_device(table)
    arrays = found.keys, found.best, found.best_probability
    check_memory(device, sum(array.nbytes for array in arrays), "the n-gram table's contexts",
                 "give a smaller table (foredraft ngram prune)")
    return Hash(*(torch.from_numpy(array).to(device) for array in arrays), found.seed, found.root_best,
                found.root_probability, found.vocab_size, found.bits, found.probes, found.order, found.strict)
