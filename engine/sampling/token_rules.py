"""Tokens that are forbidden or forced at certain positions, and scores that are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foredraft.engine.sampling.processor import Context
from foredraft.errors import UserError
from foredraft.kernels.sampling.log_softmax import LOG_SOFTMAX

_FLOAT32 = np.finfo(np.float32)


def check_tokens(name: str, tokens: Sequence[int], context: Context) -> list[int]:
    """The tokens as a list. UserError: one is outside the vocabulary."""
    for token in tokens:
        if not 0 <= token < context.vocabulary:
            raise UserError(f"{name} holds token {token}; the model's tokens are 0..{context.vocabulary - 1}: leave it out")
    return list(tokens)


def allow_only(allowed: Sequence[int] | np.ndarray, scores: np.ndarray) -> None:
    """Forbid all tokens but `allowed`. If all of these are forbidden already, all are allowed, as in transformers."""
    kept = scores[allowed]
    scores[:] = -np.inf
    scores[allowed] = kept if np.any(kept > -np.inf) else 0


class MinLength:
    """No end token before the output has `length` tokens, the start token included."""

    def __init__(self, length: int, context: Context):
        self.length, self.end_tokens = length, list(context.end_tokens)

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        if len(tokens) < self.length:
            scores[self.end_tokens] = -np.inf


class SuppressTokens:
    """Forbids tokens everywhere, or only where the output has `length` tokens, the start token included."""

    def __init__(self, tokens: Sequence[int], context: Context, length: int | None = None):
        name = "suppress_tokens" if length is None else "begin_suppress_tokens"
        self.tokens, self.length = check_tokens(name, tokens, context), length

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        if self.length is None or len(tokens) == self.length:
            scores[self.tokens] = -np.inf


class ForceTokens:
    """Allows only some tokens where the output has `length` tokens, the start token included."""

    def __init__(self, name: str, tokens: Sequence[int], context: Context, length: int):
        self.tokens, self.length = check_tokens(name, tokens, context), length

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        if len(tokens) == self.length:
            scores[:] = -np.inf
            scores[self.tokens] = 0


class RemoveInvalidValues:
    """Replaces NaN by 0 and infinities by the largest finite values."""

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        np.nan_to_num(scores, copy=False, nan=0.0, posinf=_FLOAT32.max, neginf=_FLOAT32.min)


class Renormalize:
    """Turns scores into log-probabilities, which does not change any choice."""

    def __init__(self, context: Context):
        self.kernel = LOG_SOFTMAX[context.backend]

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        self.kernel(scores)
