"""A user's drafter inside the engine: defaults for what its class leaves out, and a check of its drafts on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.protocols import Capabilities, Drafter
from foredraft.engine.state import DecodeState, Draft, DraftBudget
from foredraft.errors import UserError

METHODS = ("admit", "release", "draft")


class CustomDrafter(Drafter):
    """Adapts an object with the methods admit, release and draft(state); `Drafter` as a base class is optional.

    Parameters
    ----------
    inner : object
    vocab_size : int
        V of the target.
    proposer : int
        Index into PROPOSERS of the tokens that the draft does not attribute.
    """

    def __init__(self, inner: Any, vocab_size: int, proposer: int):
        missing = [name for name in METHODS if not callable(getattr(inner, name, None))]
        if missing:
            raise UserError(f"drafter {type(inner).__name__} has no method {', '.join(missing)}; write {', '.join(METHODS)} "
                            "as foredraft.Drafter says")
        self.inner, self.vocab_size, self.proposer = inner, vocab_size, proposer
        # the class's own attributes where it has them, else Drafter's defaults
        given = getattr(inner, "name", Drafter.name)
        self.name = type(inner).__name__ if given == Drafter.name else given
        self.capabilities: Capabilities = getattr(inner, "capabilities", Drafter.capabilities)

    @property
    def generation(self) -> int:
        return getattr(self.inner, "generation", Drafter.generation)

    def admit(self, sequences: Sequence[int], sources: Sequence[Tensor], encoded: Sequence[Tensor]) -> None:
        self.inner.admit(sequences, sources, encoded)

    def release(self, sequences: Sequence[int]) -> None:
        self.inner.release(sequences)

    def draft(self, state: DecodeState, budget: DraftBudget | None = None) -> Draft:
        draft = self.inner.draft(state)
        if state.backend == "triton":
            # on CUDA reading a value would wait for the device
            return draft
        self._check(draft, state)
        lengths = np.minimum(draft.lengths.numpy(), state.allowed(budget).numpy())
        tokens, proposer = draft.tokens.numpy(), draft.proposer.numpy()
        # new arrays: the drafter may keep its own draft
        tokens = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 0)
        proposer = np.where(proposer == 0, np.uint8(self.proposer), proposer)
        return replace(draft, tokens=torch.from_numpy(tokens), lengths=torch.from_numpy(lengths),
                       proposer=torch.from_numpy(proposer), dense=draft.dense.contiguous(),
                       parents=None if draft.parents is None else draft.parents.contiguous())

    def end_step(self) -> None:
        if isinstance(self.inner, Drafter):
            self.inner.end_step()

    def _check(self, draft: Draft, state: DecodeState) -> None:
        """Raise UserError where kernels would read outside of their arrays."""
        if not isinstance(draft, Draft):
            self._refuse(f"draft() returned a {type(draft).__name__}", "return a foredraft.Draft")
        B, most, tokens = state.batch_size, state.max_draft, draft.tokens
        K = tokens.shape[1] if isinstance(tokens, Tensor) and tokens.dim() == 2 else most
        wanted = {"tokens": ((B, K), torch.int64), "lengths": ((B,), torch.int64), "dense": ((B,), torch.bool),
                  "proposer": ((B, K), torch.uint8)}
        if draft.parents is not None:
            wanted["parents"] = ((B, K), torch.int64)
        if draft.logits is not None or draft.lse is not None:
            wanted |= {"logits": ((B, K, self.vocab_size), torch.float32), "lse": ((B, K), torch.float64)}
        for name, (shape, dtype) in wanted.items():
            value = getattr(draft, name)
            if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype or value.device.type != "cpu":
                found = f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                self._refuse(f"draft.{name} is {found}", f"give a tensor {list(shape)} {dtype} on the CPU")
        if K > most:
            self._refuse(f"draft.tokens has {K} columns", f"draft at most state.max_draft = {most} tokens")
        tokens, lengths = draft.tokens.numpy(), draft.lengths.numpy()
        if ((lengths < 0) | (lengths > K)).any():
            self._refuse(f"draft.lengths is {lengths.tolist()}", f"give lengths of 0 to {K}")
        drafted = np.arange(K) < lengths[:, None]
        if (drafted & ((tokens < 0) | (tokens >= self.vocab_size))).any():
            self._refuse("draft.tokens has a token outside the vocabulary", f"give tokens of 0 to {self.vocab_size - 1}")
        if draft.logits is None and draft.dense.any():
            self._refuse("draft.dense is set without draft.logits", "give logits and lse, or leave dense False")
        if draft.parents is not None:
            if not self.capabilities.tree_drafts:
                self._refuse("draft.parents is set", "declare Capabilities(tree_drafts=True), or leave parents None")
            parents = draft.parents.numpy()
            if ((parents < 0) | (parents > np.arange(K))).any():
                self._refuse("draft.parents points to a later token", "give token i a parent of 0 to i")

    def _refuse(self, found: str, advice: str) -> None:
        raise UserError(f"drafter {self.name!r}: {found}; {advice}")
