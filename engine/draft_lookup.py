"""The lookup drafter: copies what followed the same ids in the source text or in the output so far.

Needs no training and no model; its acceptance is how much a target copies. The rules, and the index that applies them
without a rescan, are in foredraft.ngram_native.suffix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from foredraft.engine.state import ORIGINS, DecodeState, Draft
from foredraft.ngram_native.suffix import SuffixIndex


class LookupDrafter:
    """Proposes the continuation of the longest match, min_match to max_match ids, of a row's last ids.

    A match of a single id is worth a draft: a refused one costs little where verification is nearly free. Beyond four
    ids a longer match has not drafted better on a trained target's summaries, and in a text that repeats itself it
    drafts worse, for it prefers the repetition to a match that leaves more to copy.
    """

    name = "lookup"

    def __init__(self, min_match: int = 1, max_match: int = 4):
        self.index = SuffixIndex(min_match, max_match)
        self._warm_up()

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Index the sources, n of [S_i] int64, for the given rows; what a row held before is forgotten."""
        for row, source in zip(rows, sources, strict=True):
            self.index.admit(row, source.numpy())

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.index.release(row)

    def draft(self, state: DecodeState) -> Draft:
        """One compiled call for the whole batch, on the state's own memory: point masses, a length per row."""
        draft = Draft.empty(state.rows, state.max_draft)
        draft.origin.fill_(ORIGINS.index("lookup"))
        self.index.propose(
            state.tokens.numpy(), state.lengths.numpy(), state.allowed().numpy(), state.end_token,
            draft.tokens.numpy(), draft.lengths.numpy(),
        )  # fmt: skip
        return draft

    def _warm_up(self) -> None:
        """Compile, or read the compiled code, before the first request."""
        index = SuffixIndex(1, 1)
        index.admit(0, np.zeros(2, np.int64))
        one = np.ones(1, np.int64)
        index.propose(np.zeros((1, 3), np.int64), one + 1, one, 1, np.zeros((1, 1), np.int64), np.zeros(1, np.int64))
