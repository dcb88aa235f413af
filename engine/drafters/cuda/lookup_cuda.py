"""Lookup and n-gram drafters on a device, alone or combined: one kernel launch a step, with the CPU's rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foredraft import embedded
from foredraft.engine.drafters.cuda.draft_buffers import PerState
from foredraft.engine.drafters.ngram import open_table
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.models.device_memory import check_memory
from foredraft.engine.protocols import Capabilities, Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.kernels.core.backend_triton import power_of_2
from foredraft.kernels.drafting.ngram_lookup_triton import Hash, ngram_lookup_triton
from foredraft.kernels.drafting.prompt_lookup_triton import prompt_lookup_triton
from foredraft.ngram_native.device_table import export_device
from foredraft.ngram_native.prompt_lookup.hash_chains import WINDOW
from foredraft.ngram_native.prompt_lookup.source_index import MAX_COUNT, PRIOR, PRIOR_CONFIDENCE
from foredraft.ngram_native.stopping import COST
from foredraft.ngram_native.table import Table

# Draft tokens that are allocated for the first request.
WIDTH = 16


def _drafts(proposer: str) -> PerState[Draft]:
    """A draft of point masses for each state; a combined drafter's kernel overwrites the proposer."""
    def make(state: DecodeState) -> Draft:
        draft = Draft.empty(state.batch_size, state.max_draft, state.tokens.device)
        draft.proposer.fill_(PROPOSERS.index(proposer))
        return draft

    return PerState(make)


class LookupDrafterCuda(Drafter):
    """Copies from the source and the output, or an n-gram table's token where it has the higher acceptance probability.

    As engine/drafters/lookup.py without a history; each sequence learns its own confidences
    (kernels/drafting/prompt_lookup_triton.py).
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
        self._allocate(0, 0, WIDTH)
        self._drafts = _drafts("lookup")

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> LookupDrafterCuda:
        table = None
        if "ngram" in name:
            table = open_table(argument or embedded.NGRAM, setup.target.config.vocab_size, setup.tokenizer)
        return cls(setup.device, table=table)

    def _allocate(self, B: int, length: int, width: int) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=self.device)

        self.source, self.source_lengths, self.last = zeros(B, length), zeros(B), zeros(B, 1 + 2 * width)
        self.tested = self._prior.repeat(B, 1, 1)
        self.generation += 1

    def _grow(self, B: int, length: int, width: int) -> None:
        """Make room for B sequences, sources of `length` tokens and drafts of `width`; sequences keep what they have."""
        check_memory(self.device, B * (8 * (length + 2 + 2 * width) + self._prior.nbytes),
                     f"the drafter's copies of {B} sources of {length} tokens", "lower batch_size or max_source")
        before = self.source, self.source_lengths, self.last, self.tested
        self._allocate(B, length, width)
        for new, old in zip((self.source, self.source_lengths, self.last, self.tested), before, strict=True):
            new[tuple(slice(size) for size in old.shape)] = old

    def reserve(self, num_sequences: int, length: int) -> None:
        """Make room for B sequences with sources of `length` tokens, rounded up to a power of 2, so that it seldom grows."""
        B, S = self.source.shape
        if num_sequences > B or length > S:
            self._grow(max(num_sequences, B), max(power_of_2(length), S), (self.last.shape[1] - 1) // 2)

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Copy new sources to the device."""
        self.reserve(max(sequences) + 1, max(len(source) for source in sources))
        for sequence, source in zip(sequences, sources, strict=True):
            self.source[sequence, : len(source)] = source.to(self.device)
            self.source_lengths[sequence].fill_(len(source))
            self.last[sequence, 0].fill_(0)

    def release(self, sequences: Sequence[int]) -> None:
        for sequence in sequences:
            self.source_lengths[sequence].fill_(0)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        draft = self._drafts.of(state)
        if 1 + 2 * state.max_draft > self.last.shape[1]:
            # in a state's first step alone, which is not captured
            self._grow(*self.source.shape, state.max_draft)
        prompt_lookup_triton(
            self.source, self.source_lengths, state.tokens, state.lengths, state.finished, state.limits, state.draft_tokens,
            self.tested, self.last, self.table, state.end_token, WINDOW, self.min_match, MAX_COUNT, self.cost, draft.tokens,
            draft.lengths, draft.proposer)
        return draft


class NgramDrafterCuda(Drafter):
    """engine/drafters/ngram.py on a device, with the table as one hash table (ngram_native/device_table.py)."""

    name = "ngram"
    capabilities = Capabilities(point_masses=True)

    def __init__(self, table: Table, device: torch.device | str, cost: float = COST):
        self.table, self.cost = hashed(table, device), cost
        self._drafts = _drafts("ngram")

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> NgramDrafterCuda:
        return cls(open_table(argument or embedded.NGRAM, setup.target.config.vocab_size, setup.tokenizer), setup.device)

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Nothing to do: a table knows no source."""

    def release(self, sequences: Sequence[int]) -> None:
        """Nothing to do."""

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        draft = self._drafts.of(state)
        ngram_lookup_triton(
            self.table, state.tokens, state.lengths, state.finished, state.limits, state.draft_tokens, state.end_token,
            self.cost, draft.tokens, draft.lengths)
        return draft


def hashed(table: Table, device: torch.device | str) -> Hash:
    """A table's contexts on a device, as one hash table."""
    found = export_device(table)
    arrays = found.keys, found.best, found.best_probability
    check_memory(device, sum(array.nbytes for array in arrays), "the n-gram table's contexts",
                 "give a smaller table (foredraft ngram prune)")
    return Hash(*(torch.from_numpy(array).to(device) for array in arrays), found.seed, found.root_best,
                found.root_probability, found.vocab_size, found.bits, found.probes, found.order, found.strict)
