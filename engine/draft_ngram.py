"""The n-gram drafter: argmax chains of a trained table, drafted as point masses at every temperature.

A point mass is verified without the drafter's probabilities (foredraft.engine.judge), so the target's distribution is
kept whatever the table says. The table and its file are described in foredraft.ngram_native.table, the chains in
foredraft.ngram_native.query.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from foredraft.engine.state import ORIGINS, DecodeState, Draft
from foredraft.errors import UserError
from foredraft.ngram_native import query
from foredraft.ngram_native.table import Table, vocabulary_fingerprint


class NgramDrafter:
    """Proposes, for each row, the likeliest chain after its last N - 1 ids, down to a probability of min_probability.

    Every further token of a draft costs the target a few per cent of a step; with the default a chain ends about where
    its chance to be right no longer pays for that. The drafter keeps nothing per request.
    """

    name = "ngram"

    def __init__(self, table: Table, min_probability: float = 0.05):
        if not 0 <= min_probability <= 1:
            raise UserError(f"min_probability must lie in 0..1, got {min_probability}")
        self.table, self.min_probability = table, min_probability
        self._warm_up()

    @classmethod
    def open(cls, path: str | Path, vocab_size: int | None = None, tokenizer: Any = None,
             min_probability: float = 0.05) -> NgramDrafter:
        """Map a table file and check that it speaks the target's ids.

        vocab_size: the target's V. tokenizer: anything with get_vocab(); None leaves that check out.
        """
        table = Table.open(path)
        if vocab_size is not None and table.vocab_size != vocab_size:
            raise UserError(f"{path}: the table has {table.vocab_size} ids, the target {vocab_size}; fit one for it")
        if tokenizer is not None and table.tokenizer not in (None, vocabulary_fingerprint(tokenizer.get_vocab())):
            raise UserError(f"{path}: the table was fitted with another tokenizer; fit one with the target's")
        return cls(table, min_probability)

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        pass

    def release(self, rows: Sequence[int]) -> None:
        pass

    def draft(self, state: DecodeState) -> Draft:
        """One compiled call for the whole batch, on the state's own memory: point masses, a length per row."""
        draft = Draft.empty(state.rows, state.max_draft)
        draft.origin.fill_(ORIGINS.index("ngram"))
        query.draft(
            self.table, state.tokens.numpy(), state.lengths.numpy(), state.allowed().numpy(), state.end_token,
            self.min_probability, draft.tokens.numpy(), draft.lengths.numpy(),
        )  # fmt: skip
        return draft

    def _warm_up(self) -> None:
        """Compile, or read the compiled code, for this table's integer types before the first request."""
        one = np.ones(1, np.int64)
        query.draft(
            self.table, np.zeros((1, 2), np.int64), one, one, 1, self.min_probability,
            np.zeros((1, 1), np.int64), np.zeros(1, np.int64),
        )  # fmt: skip
