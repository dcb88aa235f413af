"""Biases of token sequences, and forbidden sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foredraft.engine.sampling.processor import Context
from foredraft.engine.sampling.token_rules import check_tokens
from foredraft.kernels.sampling.sequence_bias import SEQUENCE_BIAS


class SequenceBias:
    """Adds a bias to a sequence's last token where the output ends with the tokens before it.

    Parameters
    ----------
    biases : sequence of (tuple of int, float)
        Sequences and their biases.
    context : Context
    name : str
        Of the argument, for messages.
    """

    def __init__(self, biases: Sequence[tuple[tuple[int, ...], float]], context: Context, name: str = "sequence_bias"):
        for sequence, _ in biases:
            check_tokens(name, sequence, context)
        # the order in which transformers adds biases, because float32 sums depend on it: single tokens, then the other
        # lengths as they first occur
        sizes = list(dict.fromkeys([1, *(len(sequence) for sequence, _ in biases)]))
        ordered = sorted(biases, key=lambda pair: (pair[0][-1], sizes.index(len(pair[0]))))
        self.sizes = np.array([len(sequence) for sequence, _ in ordered], np.int64)
        self.sequences = np.full((len(ordered), max(self.sizes)), -1, np.int64)
        for row, (sequence, _) in zip(self.sequences, ordered, strict=True):
            row[len(row) - len(sequence) :] = sequence
        # a bias beyond float32 is infinite
        with np.errstate(over="ignore"):
            self.biases = np.array([bias for _, bias in ordered], np.float32)
        self.kernel = SEQUENCE_BIAS[context.backend]

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> None:
        self.kernel(tokens, self.sequences, self.sizes, self.biases, scores)


class BadWords(SequenceBias):
    """Forbids sequences; an end token alone cannot be forbidden, as in transformers."""

    def __init__(self, words: Sequence[tuple[int, ...]], context: Context):
        ends = {(token,) for token in context.end_tokens}
        biases = [(word, -np.inf) for word in dict.fromkeys(words) if word not in ends]
        # the kernel needs a sequence; a bias of 0 changes nothing
        super().__init__(biases or [((0,), 0.0)], context, "bad_words_ids")
