"""Add a bias to the last token of a sequence, where the output ends with the tokens before it.

    tokens     [T] int64        the output so far
    sequences  [M, W] int64     the biased sequences, right-aligned; those with one last token stand together
    sizes      [M] int64        their lengths, 1..W
    biases     [M] float32      -inf forbids
    scores     [V] float32      in place
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit


def sequence_bias_reference(tokens, sequences, sizes, biases, scores) -> None:
    written, total = tokens.tolist(), {}
    for sequence, size, bias in zip(sequences.tolist(), sizes.tolist(), biases, strict=True):
        *before, last = sequence[len(sequence) - size :]
        if not before or (len(before) <= len(written) and written[-len(before) :] == before):
            total[last] = total.get(last, np.float32(0)) + bias
    for token, bias in total.items():
        scores[token] += bias


@njit()
def sequence_bias_numba(tokens, sequences, sizes, biases, scores):
    W, T, total = sequences.shape[1], tokens.shape[0], np.float32(0)
    for m in range(sequences.shape[0]):
        before, last = sizes[m] - 1, sequences[m, W - 1]
        matched = 0
        if before <= T:
            while matched < before and sequences[m, W - 2 - matched] == tokens[T - 1 - matched]:
                matched += 1
            if matched == before:
                total += biases[m]
        # the sum comes first, as the bias of each token is summed before it is added
        if m + 1 == sequences.shape[0] or sequences[m + 1, W - 1] != last:
            scores[last] += total
            total = np.float32(0)


SEQUENCE_BIAS = {"reference": sequence_bias_reference, "numba": sequence_bias_numba}
