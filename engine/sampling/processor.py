"""The interface of logits processors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Processor(Protocol):
    """Changes the scores of one position, before a token is chosen or sampled there.

    A position may be drafted and processed several times. A processor therefore keeps no state: what it does depends on
    `tokens` and `scores` alone, so that the output does not depend on drafts.
    """

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        """Change `scores` [V] float32 in place; tokens [t] int64 is the output so far, the start token first."""


@dataclass(frozen=True)
class Context:
    """What processors know of a request.

    source : ndarray [S] int64
    end_tokens : tuple of int, may be empty
    max_length : int, the longest output, the start token included
    vocabulary : int, V
    backend : str, the kernels' ("numba" or "reference")
    encode : callable or None, text to tokens without an end token; None without a tokenizer
    grammars : GrammarVocabulary or None, for regex and json_schema; None without a tokenizer
    decode : callable or None, tokens to text
    """

    source: np.ndarray
    end_tokens: tuple[int, ...]
    max_length: int
    vocabulary: int
    backend: str
    encode: Callable[[str], list[int]] | None = None
    grammars: Any = None
    decode: Callable[[list[int]], str] | None = None
