"""Draft vocabularies: the tokens that a drafter with a reduced output layer can propose."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from foredraft.errors import UserError


def frequent_tokens(sequences: Iterable[np.ndarray], count: int, vocab_size: int, end_token: int) -> np.ndarray:
    """The most frequent tokens of some sequences.

    Parameters
    ----------
    sequences
        Integer arrays.
    count
        Number of tokens to return.
    vocab_size
        V.
    end_token
        Always returned, whatever its frequency.

    Returns
    -------
    numpy.ndarray
        [count] int64, the most frequent token first; ties go to the smaller token.

    Raises
    ------
    UserError
        `count` exceeds the vocabulary.
    """
    if count > vocab_size:
        raise UserError(f"--draft-vocab {count} exceeds the vocabulary of {vocab_size} tokens; give a smaller number")
    seen = np.zeros(vocab_size, np.int64)
    for sequence in sequences:
        np.add.at(seen, sequence, 1)
    seen[end_token] = max(seen.max() + 1, 1)
    return np.argsort(-seen, kind="stable")[:count]
