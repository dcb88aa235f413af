"""Penalties: they make tokens less or more likely, depending on the source and the output so far."""

from __future__ import annotations

import numpy as np

from foredraft.engine.sampling.processor import Context
from foredraft.kernels.sampling.repetition_penalty import REPETITION_PENALTY


class RepetitionPenalty:
    """Tokens of the output become less likely (Keskar et al. 2019)."""

    def __init__(self, penalty: float, context: Context):
        self.penalty, self.kernel = float(penalty), REPETITION_PENALTY[context.backend]

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        self.kernel(tokens, self.penalty, scores)


class EncoderRepetitionPenalty:
    """Tokens of the source become more likely if `penalty` is above 1."""

    def __init__(self, penalty: float, context: Context):
        self.penalty, self.source = 1 / penalty, np.unique(context.source)
        self.kernel = REPETITION_PENALTY[context.backend]

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        self.kernel(self.source, self.penalty, scores)


class ExponentialDecayLengthPenalty:
    """End tokens become more likely with every token after `start` new ones: by |score| (factor^n - 1) after n of them."""

    def __init__(self, settings: tuple[int, float], context: Context):
        start, self.factor = settings
        self.start, self.end_tokens = start + 1, list(context.end_tokens)

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        after = len(tokens) - self.start
        if after > 0:
            before = scores[self.end_tokens]
            with np.errstate(over="ignore"):
                bonus = np.abs(before) * np.float32(self.factor**after - 1)
            scores[self.end_tokens] = before + np.where(np.isfinite(before), bonus, np.float32(0))
