"""Forbid the tokens that would complete an n-gram which a text already holds (Paulus et al. 2017, section 2.5).

    text    [N] int64      the text whose n-grams must not be written again: the output itself, or the source
    tokens  [T] int64      the output so far; its last n - 1 tokens begin the next n-gram
    n       int >= 1
    scores  [V] float32    in place: -inf at the tokens that are forbidden now
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit


def no_repeat_ngram_reference(text, tokens, n, scores) -> None:
    text, written = text.tolist(), tokens.tolist()
    if len(written) < n - 1:
        return
    last = written[len(written) - n + 1 :]
    for start in range(len(text) - n + 1):
        if text[start : start + n - 1] == last:
            scores[text[start + n - 1]] = -np.inf


@njit()
def no_repeat_ngram_numba(text, tokens, n, scores):
    first = tokens.shape[0] - n + 1
    if first < 0:
        return
    for start in range(text.shape[0] - n + 1):
        i = 0
        while i < n - 1 and text[start + i] == tokens[first + i]:
            i += 1
        if i == n - 1:
            scores[text[start + i]] = np.float32(-np.inf)


NO_REPEAT_NGRAM = {"reference": no_repeat_ngram_reference, "numba": no_repeat_ngram_numba}
