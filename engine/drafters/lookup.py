"""Prompt lookup (Saxena 2023): copy the tokens that followed the same n-gram in the source or in the output so far.

It needs no training and no model. With an n-gram table each token is the one with the higher acceptance probability, of the
copy and of the table. With a history it also copies from the outputs of earlier requests. The rules are in
ngram_native/prompt_lookup/copy_rules.py, the index in ngram_native/prompt_lookup/source_index.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foredraft import embedded
from foredraft.engine.drafters.ngram import open_table
from foredraft.engine.drafters.registry import PROPOSERS
from foredraft.engine.protocols import Capabilities, Drafter, DrafterSetup
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError
from foredraft.kernels.drafting.tree_children import Tree
from foredraft.ngram_native.prompt_lookup.source_index import LOOKUP, NGRAM, PromptLookupIndex
from foredraft.ngram_native.stopping import COST
from foredraft.ngram_native.table import Table

# Tokens of earlier outputs that the history keeps: about a thousand summaries, 3 MB.
HISTORY = 1 << 16


class LookupDrafter(Drafter):
    """Proposes the continuation of the longest match of a sequence's last tokens.

    Parameters
    ----------
    min_match, max_match : int
        Tokens that must match, and that are compared at most.
    table : Table or None
        An n-gram table, for tokens where its acceptance probability is the higher one.
    history : int
        Tokens of earlier outputs to copy from, shared by all requests of this drafter; 0 is off.
    cost : float
        Of one more drafted token, as a share of a step; a draft ends where its expected gain is lower. A budget's costs take
        precedence.
    word_starts : ndarray or None
        [V] bool, the tokens that begin a word: copying then goes on behind a corrected word
        (ngram_native/prompt_lookup/word_gap.py).
    """

    capabilities = Capabilities(point_masses=True, trees=True, stops_early=True)

    def __init__(self, min_match: int = 1, max_match: int = 4, table: Table | None = None, history: int = 0,
                 cost: float = COST, word_starts: np.ndarray | None = None):
        if not 0 <= cost <= 1:
            raise UserError(f"cost must lie in 0..1, got {cost}; it is a share of a step")
        self.index, self.table, self.cost = PromptLookupIndex(min_match, max_match, history, word_starts), table, cost
        self.name = "+".join(["lookup", *(["history"] if history else []), *(["ngram"] if table else [])])
        self._state: DecodeState | None = None
        self._warm_up()

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> LookupDrafter:
        """"lookup", with "+history" and "+ngram" in any combination; the argument is a table file."""
        table = None
        if "ngram" in name:
            table = open_table(argument or embedded.NGRAM, setup.target.config.vocab_size, setup.tokenizer)
        return cls(table=table, history=HISTORY if "history" in name else 0, word_starts=word_starts(setup.tokenizer))

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Index the sources, n of [S_i] int64; a sequence's former source is forgotten."""
        for sequence, source in zip(sequences, sources, strict=True):
            self.index.admit(sequence, source.numpy())

    def release(self, sequences: Sequence[int]) -> None:
        for sequence in sequences:
            if self._state is not None:
                self.index.remember(self._state.tokens[sequence, 1 : int(self._state.lengths[sequence])].numpy())
            self.index.release(sequence)
        self._state = None

    def draft(self, state: DecodeState, budget: DraftBudget | None = None, tree: Tree | None = None) -> Draft:
        """Copies as point masses, in one compiled call for the batch.

        A tree takes a second call for its other branches; the longest match then fills the branch of first children.
        """
        if len(self.index.history):
            # the outputs are read when their sequences are released
            self._state = state
        draft, allowed = Draft.empty(state.batch_size, state.max_draft), state.allowed(budget).numpy()
        text, drafted = (state.host.tokens, state.host.lengths), (draft.tokens.numpy(), draft.lengths.numpy())
        trunk = allowed if tree is None else np.minimum(allowed, first_branch(tree))
        cost = self.cost if budget is None or budget.costs is None else budget.costs[0]
        self.index.propose(*text, trunk, state.end_token, *drafted, draft.proposer.numpy(), cost, self.table)
        if tree is not None:
            draft.parents = torch.zeros_like(draft.tokens)
            self.index.branch(*text, allowed, state.end_token, tree.parents, *drafted, draft.parents.numpy(),
                              draft.proposer.numpy())
        return draft

    def long_copies(self, state: DecodeState, budget: DraftBudget, min_match: int) -> Draft:
        """All that follows a match of `min_match` tokens. It depends on the request alone, not on learned confidences."""
        draft = Draft.empty(state.batch_size, state.max_draft)
        self.index.propose(state.host.tokens, state.host.lengths, state.allowed(budget).numpy(), state.end_token,
                           draft.tokens.numpy(), draft.lengths.numpy(), draft.proposer.numpy(), min_match=min_match)
        return draft

    def _warm_up(self) -> None:
        """Compile, or load the compiled code, before the first request."""
        assert (PROPOSERS[LOOKUP], PROPOSERS[NGRAM]) == ("lookup", "ngram")
        index = PromptLookupIndex(1, 1, min(len(self.index.history), 1))
        index.admit(0, np.zeros(2, np.int64))
        index.remember(np.zeros(1, np.int64))
        one, empty = np.ones(1, np.int64), np.zeros((1, 1), np.int64)
        index.propose(np.zeros((1, 3), np.int64), one + 1, one, 1, empty, one.copy(), np.zeros((1, 1), np.uint8), 0.0,
                      self.table)
        parents = np.zeros((1, 1), np.int64)
        index.branch(np.zeros((1, 3), np.int64), one + 1, one, 1, one - 1, empty, one.copy(), parents,
                     np.zeros((1, 1), np.uint8))


def word_starts(tokenizer) -> np.ndarray | None:
    """[V] bool, the tokens that begin a word by SentencePiece's mark; None without a tokenizer or without such tokens."""
    if tokenizer is None:
        return None
    pieces = tokenizer.get_vocab()
    found = np.zeros(max(pieces.values(), default=0) + 1, np.bool_)
    found[[token for piece, token in pieces.items() if piece.startswith("▁")]] = True
    return found if found.any() else None


def first_branch(tree: Tree) -> int:
    """The number of nodes of the branch of first children."""
    count, last = 0, 0
    for node, parent in enumerate(tree.parents):
        if parent == last:
            count, last = count + 1, node + 1
    return count
