"""Rules against repeated n-grams, of the output or of the source."""

from __future__ import annotations

import numpy as np

from foredraft.engine.sampling.processor import Context
from foredraft.kernels.sampling.no_repeat_ngram import NO_REPEAT_NGRAM


class NoRepeatNgram:
    """No n-gram occurs twice in the output."""

    def __init__(self, n: int, context: Context):
        self.n, self.kernel = n, NO_REPEAT_NGRAM[context.backend]

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        self.kernel(tokens, tokens, self.n, scores)


class EncoderNoRepeatNgram:
    """No n-gram of the source occurs in the output."""

    def __init__(self, n: int, context: Context):
        self.n, self.source, self.kernel = n, context.source, NO_REPEAT_NGRAM[context.backend]

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        self.kernel(self.source, tokens, self.n, scores)
