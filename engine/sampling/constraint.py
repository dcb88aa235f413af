"""Constraints: they allow only the tokens that continue a valid output, and draft the tokens that have no alternative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from foredraft.engine.sampling.processor import Context
from foredraft.engine.sampling.token_rules import allow_only
from foredraft.errors import UserError


class Constraint(Protocol):
    """Says which outputs are valid; `tokens` is the output so far, without the start token."""

    def allowed(self, tokens: Sequence[int]) -> np.ndarray | None:
        """The tokens [n] int64 that may follow; None where `tokens` itself is not valid."""

    def forced(self, tokens: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens to draft after `tokens`, because no other can follow. A wrong one is only rejected."""


class ConstraintProcessor:
    """Forbids the tokens that a constraint does not allow. After an invalid draft, which is rejected, it does nothing."""

    def __init__(self, constraint: Constraint):
        self.constraint = constraint

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        allowed = self.constraint.allowed(tokens[1:].tolist())
        if allowed is None:
            return
        if not len(allowed):
            raise ValueError("no token of this vocabulary continues the output; use another constraint or model")
        allow_only(allowed, scores)


class Choices:
    """One of several token sequences, then an end token. The sequences are a trie: a node is a tuple of tokens."""

    def __init__(self, sequences: Sequence[Sequence[int]], context: Context):
        if not context.end_tokens:
            raise UserError("choices need an end token, and this model or request has none; give eos_token_id")
        following: dict[tuple[int, ...], set[int]] = {}
        for sequence in sequences:
            for i, token in enumerate(sequence):
                following.setdefault(tuple(sequence[:i]), set()).add(token)
            following.setdefault(tuple(sequence), set()).update(context.end_tokens)
        longest = max(map(len, sequences)) + 1
        if longest > context.max_length - 1:
            raise UserError(f"choices need {longest} tokens, max_new_tokens is {context.max_length - 1}; raise it")
        self.following = {node: np.array(sorted(tokens), np.int64) for node, tokens in following.items()}

    def allowed(self, tokens: Sequence[int]) -> np.ndarray | None:
        return self.following.get(tuple(tokens))

    def forced(self, tokens: Sequence[int], limit: int) -> list[int]:
        node, found = tuple(tokens), []
        while len(found) < limit and node in self.following and len(self.following[node]) == 1:
            found.append(int(self.following[node][0]))
            node += (found[-1],)
        return found
