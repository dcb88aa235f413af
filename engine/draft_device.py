"""Lookup and n-gram drafts on a device: one kernel launch a round. N-gram drafts are the host's; a lookup is one longest
match, by the simpler rule of kernels/lookup.py.

Each drafter keeps one Draft for every state and writes it anew every round, so that a captured graph finds it in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from foredraft.engine.state import ORIGINS, DecodeState, Draft
from foredraft.kernels.backend import power_of_2
from foredraft.kernels.chain import chain_triton
from foredraft.kernels.lookup import lookup_triton
from foredraft.ngram_native.chains import WINDOW
from foredraft.ngram_native.device import export_device
from foredraft.ngram_native.query import COST
from foredraft.ngram_native.table import Table


class _Kept:
    """One Draft of point masses for each state that is drafted for, as long as the state lives."""

    def __init__(self, name: str):
        self.origin = ORIGINS.index(name)
        self.drafts: WeakKeyDictionary[DecodeState, Draft] = WeakKeyDictionary()

    def of(self, state: DecodeState) -> Draft:
        if state not in self.drafts:
            draft = self.drafts[state] = Draft.empty(state.rows, state.max_draft, state.tokens.device)
            draft.origin.fill_(self.origin)
        return self.drafts[state]


class DeviceLookup:
    """Copies on a device: no index, every position is compared (kernels/lookup.py).

    `generation` counts the changes of place of the sources: graphs captured before one hold the old place.
    """

    name = "lookup"
    generation = 0

    def __init__(self, device: torch.device | str, min_match: int = 1, max_match: int = 4):
        self.device, self.min_match, self.max_match = device, min_match, max_match
        self.source, self.source_lengths = self._texts(0, 0)
        self._kept = _Kept(self.name)

    def _texts(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        return (torch.zeros(rows, length, dtype=torch.int64, device=self.device),
                torch.zeros(rows, dtype=torch.int64, device=self.device))

    def reserve(self, rows: int, length: int) -> None:
        """Room for sources of so many ids, in steps, so that it seldom grows."""
        had_rows, had_length = self.source.shape
        if rows <= had_rows and length <= had_length:
            return
        source, lengths = self._texts(max(rows, had_rows), max(power_of_2(length), had_length))
        self.generation += 1
        source[:had_rows, :had_length], lengths[:had_rows] = self.source, self.source_lengths
        self.source, self.source_lengths = source, lengths

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        self.reserve(max(rows) + 1, max(len(source) for source in sources))
        for row, source in zip(rows, sources, strict=True):
            self.source[row, : len(source)] = source.to(self.device)
            self.source_lengths[row].fill_(len(source))

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.source_lengths[row].fill_(0)

    def draft(self, state: DecodeState) -> Draft:
        draft = self._kept.of(state)
        lookup_triton(
            self.source, self.source_lengths, state.tokens, state.lengths, state.finished, state.limits, state.draft_tokens,
            state.end_token, WINDOW, self.min_match, self.max_match, draft.tokens, draft.lengths)
        return draft


class DeviceNgram:
    """engine/draft_ngram.py on a device: the table as one hash (ngram_native/device.py)."""

    name = "ngram"

    def __init__(self, table: Table, device: torch.device | str, cost: float = COST):
        self.table, self.cost = export_device(table), cost
        self.keys, self.best, self.best_probability = (
            torch.from_numpy(array).to(device)
            for array in (self.table.keys, self.table.best, self.table.best_probability))
        self._kept = _Kept(self.name)

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        pass

    def release(self, rows: Sequence[int]) -> None:
        pass

    def draft(self, state: DecodeState) -> Draft:
        draft, table = self._kept.of(state), self.table
        chain_triton(
            self.keys, self.best, self.best_probability, table.seed, table.bits, table.probes, table.order, table.root_best,
            table.root_probability, state.tokens, state.lengths, state.finished, state.limits, state.draft_tokens,
            state.end_token, self.cost, draft.tokens, draft.lengths)
        return draft
