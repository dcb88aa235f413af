"""Log-probabilities and scores of the tokens that a request emits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.sampling.log_softmax import LOG_SOFTMAX

BACKEND = "numba" if HAS_NUMBA else "reference"


@dataclass(frozen=True)
class TokenLogprob:
    """An emitted token.

    Attributes
    ----------
    token : int
    logprob : float
        ln p of the token under the model: before processors and temperature.
    top : tuple of (int, float)
        The likeliest tokens and their log-probabilities, the first the likeliest.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Recorder:
    """Keeps log-probabilities, scores and logits of the emitted tokens of a request, as far as it asked for them.

    Parameters
    ----------
    logprobs : int or None
        How many of the likeliest tokens to keep with each token; None keeps no log-probabilities.
    scores, logits : bool
        Keep the scores [V] after and before processors.

    Attributes
    ----------
    logprobs : list of TokenLogprob
    scores, logits : list of ndarray [V] float32
    """

    def __init__(self, logprobs: int | None, scores: bool, logits: bool):
        self.top, self._wants_scores, self._wants_logits = logprobs, scores, logits
        self.logprobs: list[TokenLogprob] = []
        self.scores: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []
        self._before = self._after = np.zeros((0, 0), np.float32)

    def before(self, logits: np.ndarray) -> None:
        """The logits [R, V] of a step's query positions, before processors."""
        self._before = logits.copy()

    def after(self, scores: np.ndarray) -> None:
        """The scores [R, V] of the same positions, after processors."""
        self._after = scores

    def keep(self, tokens: np.ndarray, path: np.ndarray) -> None:
        """Keep the `tokens` [n] int64 that a step emits; `path` [n] int64 holds the query position of each."""
        for token, r in zip(tokens.tolist(), path.tolist(), strict=True):
            if self.top is not None:
                self.logprobs.append(self._logprob(token, self._before[r]))
            if self._wants_scores:
                self.scores.append(self._after[r].copy())
            if self._wants_logits:
                self.logits.append(self._before[r])

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens: a stop rule may have truncated the sequence."""
        for kept in (self.logprobs, self.scores, self.logits):
            del kept[length:]

    def _logprob(self, token: int, logits: np.ndarray) -> TokenLogprob:
        values = logits.copy()
        LOG_SOFTMAX[BACKEND](values)
        top = min(self.top, len(values) - 1)
        best = np.argpartition(-values, top)[:top]
        # of equally likely tokens the lower one comes first
        order = sorted(best.tolist(), key=lambda i: (-values[i], i))
        return TokenLogprob(token, float(values[token]), tuple((i, float(values[i])) for i in order))
