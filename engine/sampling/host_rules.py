"""Rules that a program passes as Python functions, with transformers' interfaces; they run on the host."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from foredraft.engine.sampling.processor import Context
from foredraft.engine.sampling.token_rules import allow_only, check_tokens


class LogitsProcessorFunction:
    """A `logits_processor` of transformers: maps input_ids [1, t] int64 and scores [1, V] float32 to new scores [1, V]."""

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        self.function = function

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        given = torch.from_numpy(scores)[None]
        found = self.function(torch.from_numpy(tokens)[None], given)
        if not isinstance(found, torch.Tensor) or found.shape != given.shape:
            what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(f"returned {what}, not scores of shape {tuple(given.shape)}")
        if found.data_ptr() != given.data_ptr():
            given.copy_(found)


class PrefixAllowedTokens:
    """A `prefix_allowed_tokens_fn` of transformers: maps a request's index and input_ids [t] to the next tokens allowed."""

    def __init__(self, function: Callable[[int, torch.Tensor], list[int]], index: int, context: Context):
        self.function, self.index, self.context = function, index, context

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        allowed = self.function(self.index, torch.from_numpy(tokens))
        allowed = allowed.tolist() if isinstance(allowed, torch.Tensor) else list(allowed)
        if not allowed:
            raise ValueError("returned no token; return at least one")
        allow_only(check_tokens("prefix_allowed_tokens_fn", allowed, self.context), scores)
