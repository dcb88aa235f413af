"""The n-gram drafter: the most probable continuations of a trained table, or samples from it.

Drafts are point masses at every temperature, so that seeded output equals plain sampling. With `sampled`, sequences above
temperature 0 sample from the table's distribution and report it. The table's file is described in ngram_native/table.py,
queries in ngram_native/query.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foredraft import embedded
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.protocols import Capabilities, Drafter, DrafterSetup
from foredraft.engine.sampling.draft_sampling import dense_draft, sample_into
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError
from foredraft.ngram_native import query
from foredraft.ngram_native.stopping import COST, is_worth_drafting
from foredraft.ngram_native.table import Table, vocabulary_fingerprint


def open_table(path: str | Path, vocab_size: int | None = None, tokenizer: Any = None) -> Table:
    """Map a table file and check that it has the target's vocabulary.

    Parameters
    ----------
    path : str or Path
    vocab_size : int or None
        V of the target; None skips the check.
    tokenizer
        The target's, with get_vocab(); None skips the check.
    """
    table = Table.open(path)
    if vocab_size is not None and table.vocab_size != vocab_size:
        raise UserError(f"{path}: the table has {table.vocab_size} tokens, the target {vocab_size}; fit one for the target")
    if tokenizer is not None and table.tokenizer not in (None, vocabulary_fingerprint(tokenizer.get_vocab())):
        raise UserError(f"{path}: the table was fitted with another tokenizer; fit one with the target's")
    return table


class NgramDrafter(Drafter):
    """Proposes the most probable continuation of each sequence's last N - 1 tokens; it keeps nothing per request.

    Parameters
    ----------
    table : Table
    cost : float
        Of one more drafted token, as a share of a step; a draft ends where its expected gain is lower. A budget's costs take
        precedence.
    sampled : bool
        Sample the drafts of sequences above temperature 0.
    """

    name = "ngram"

    def __init__(self, table: Table, cost: float = COST, sampled: bool = False):
        if not 0 <= cost <= 1:
            raise UserError(f"cost must lie in 0..1, got {cost}; it is a share of a step")
        self.table, self.cost, self.sampled = table, cost, sampled
        self.capabilities = Capabilities(point_masses=not sampled, stops_early=True)
        self._warm_up()

    @classmethod
    def open(cls, path: str | Path, vocab_size: int | None = None, tokenizer: Any = None,
             cost: float = COST, sampled: bool = False) -> NgramDrafter:
        """The drafter of a table file (open_table)."""
        return cls(open_table(path, vocab_size, tokenizer), cost, sampled)

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> NgramDrafter:
        return cls.open(argument or embedded.NGRAM, setup.target.config.vocab_size, setup.tokenizer)

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        pass

    def release(self, sequences: Sequence[int]) -> None:
        pass

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        if self.sampled and not state.greedy:
            return self._sample(state, budget)
        draft = Draft.empty(state.batch_size, state.max_draft)
        draft.proposer.numpy()[:] = PROPOSERS.index("ngram")
        query.draft(
            self.table, state.host.tokens, state.host.lengths, state.allowed(budget).numpy(), state.end_token,
            self._cost(budget), draft.tokens.numpy(), draft.lengths.numpy(),
        )  # fmt: skip
        return draft

    def _sample(self, state: DecodeState, budget: DraftBudget | None) -> Draft:
        """Sample. Whether a draft goes on depends on the next distribution, never on the sampled token."""
        draft, cost = dense_draft(state, self.table.vocab_size), self._cost(budget)
        draft.proposer.fill_(PROPOSERS.index("ngram"))
        B, K, known = state.batch_size, state.max_draft, self.table.order - 1
        lengths = torch.clamp(state.lengths, max=known)
        # the last N - 1 tokens of every sequence, then room for the draft
        positions = (state.lengths - lengths)[:, None] + torch.arange(known)
        texts = torch.zeros(B, known + K, dtype=torch.int64)
        texts[:, :known] = state.tokens.gather(1, positions.clamp(max=state.tokens.shape[1] - 1))
        logits, largest = torch.zeros(B, self.table.vocab_size), torch.zeros(B, dtype=torch.float64)
        allowed, reach = state.allowed(budget), torch.ones(B, dtype=torch.float64)
        expected, running = torch.ones(B, dtype=torch.float64), torch.ones(B, dtype=torch.bool)
        for i in range(K):
            query.log_distributions(self.table, texts.numpy(), lengths.numpy(), logits.numpy(), largest.numpy())
            reach *= largest
            running &= (i < allowed) & is_worth_drafting(reach, i, expected, cost)
            if not bool(running.any()):
                break
            expected += reach
            tokens = sample_into(draft, i, logits, state)
            draft.lengths += running
            texts.scatter_(1, lengths[:, None], tokens[:, None])
            lengths += 1
            running &= tokens != state.end_token
        return draft

    def _cost(self, budget: DraftBudget | None) -> float:
        return self.cost if budget is None or budget.costs is None else budget.costs[0]

    def _warm_up(self) -> None:
        """Compile, or load the compiled code, for this table's integer types before the first request."""
        one = np.ones(1, np.int64)
        query.draft(
            self.table, np.zeros((1, 2), np.int64), one, one, 1, self.cost,
            np.zeros((1, 1), np.int64), np.zeros(1, np.int64),
        )  # fmt: skip
