"""The lookup drafter: copies what followed the same ids in the source text or in the output so far.

Needs no training and no model; its acceptance is how much a target copies. Given an n-gram table it is the combined drafter:
id by id it takes whichever promises more, the copy or the table's likeliest id. Given a history it also copies from the
outputs of earlier requests. The rules are in foredraft.ngram_native.prompt_lookup.copy_rules, the index that
applies them without a rescan in foredraft.ngram_native.prompt_lookup.source_index.
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

# Ids of earlier outputs that stay findable: about a thousand summaries, 3 MB.
HISTORY = 1 << 16


class LookupDrafter(Drafter):
    """Proposes the continuation of the longest match, min_match to max_match ids, of a row's last ids.

    A match of a single id is worth a draft: a refused one costs little where verification is nearly free. Beyond four
    ids a longer match has not drafted better on a trained target's summaries. table: an n-gram table that drafts where it
    is surer than a copy. history: ids of earlier outputs to copy from as well (0: none), shared by all requests of this
    drafter and of every thread that uses it. cost: of a further drafted id, as a share of a step, where the state does not
    know it; it decides where a draft ends.
    """

    capabilities = Capabilities(point_masses=True, trees=True, stops_early=True)

    def __init__(self, min_match: int = 1, max_match: int = 4, table: Table | None = None, history: int = 0,
                 cost: float = COST):
        if not 0 <= cost <= 1:
            raise UserError(f"cost must lie in 0..1, got {cost}; it is a share of a step")
        self.index, self.table, self.cost = PromptLookupIndex(min_match, max_match, history), table, cost
        self.name = "+".join(["lookup", *(["history"] if history else []), *(["ngram"] if table else [])])
        self._state: DecodeState | None = None
        self._warm_up()

    @classmethod
    def create(cls, name: str, argument: str, setup: DrafterSetup) -> LookupDrafter:
        """"lookup", with "+history" and "+ngram" in any combination; the argument is a table file."""
        table = None
        if "ngram" in name:
            table = open_table(argument or embedded.NGRAM, setup.target.config.vocab_size, setup.tokenizer)
        return cls(table=table, history=HISTORY if "history" in name else 0)

    def admit(self, rows: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        """Index the sources, n of [S_i] int64, for the given rows; what a row held before is forgotten."""
        for row, source in zip(rows, sources, strict=True):
            self.index.admit(row, source.numpy())

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            if self._state is not None:
                self.index.remember(self._state.tokens[row, 1 : int(self._state.lengths[row])].numpy())
            self.index.release(row)
        self._state = None

    def draft(self, state: DecodeState, budget: DraftBudget | None = None, tree: Tree | None = None) -> Draft:
        """One compiled call for the whole batch, on the state's own memory: point masses, a length per row. A `tree` takes
        a second one, for the branches; the copy itself then goes no deeper than the tree's first branch."""
        if len(self.index.history):
            # its rows' last ids are read when they are released
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
        """Whatever follows a match of so many ids, as far as a row may draft: by the request alone, with no confidence that
        others have taught."""
        draft = Draft.empty(state.batch_size, state.max_draft)
        self.index.propose(state.host.tokens, state.host.lengths, state.allowed(budget).numpy(), state.end_token,
                           draft.tokens.numpy(), draft.lengths.numpy(), draft.proposer.numpy(), min_match=min_match)
        return draft

    def _warm_up(self) -> None:
        """Compile, or read the compiled code, before the first request."""
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


def first_branch(tree: Tree) -> int:
    """Nodes of the branch of first children."""
    count, row = 0, 0
    for node, parent in enumerate(tree.parents):
        if parent == row:
            count, row = count + 1, node + 1
    return count
