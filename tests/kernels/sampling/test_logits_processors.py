"""repetition_penalty, no_repeat_ngram, sequence_bias, truncations: compiled against the reference."""

import numpy as np
import pytest

from foredraft.kernels.sampling.log_softmax import LOG_SOFTMAX
from foredraft.kernels.sampling.no_repeat_ngram import NO_REPEAT_NGRAM
from foredraft.kernels.sampling.repetition_penalty import REPETITION_PENALTY
from foredraft.kernels.sampling.sequence_bias import SEQUENCE_BIAS
from foredraft.kernels.sampling.truncations import TRUNCATIONS

V = 60


def random_case(seed):
    rng = np.random.default_rng(seed)
    scores = (3 * rng.standard_normal(V)).astype(np.float32)
    scores[rng.random(V) < 0.1] = -np.inf
    return rng, scores, rng.integers(0, 9, rng.integers(1, 30))


def both(kernels, scores, *arguments):
    """The scores that each version leaves; the arguments come before them."""
    found = []
    for backend in ("reference", "numba"):
        found.append(scores.copy())
        kernels[backend](*arguments, found[-1])
    return found


@pytest.mark.parametrize("seed", range(10))
def test_repetition_penalty(seed):
    rng, scores, tokens = random_case(seed)
    reference, numba = both(REPETITION_PENALTY, scores, tokens, float(rng.choice([0.7, 1.3])))
    assert np.array_equal(reference, numba) and not np.array_equal(reference, scores)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_no_repeat_ngram(n):
    changed = 0
    for seed in range(10):
        rng, scores, tokens = random_case(seed)
        for text in (tokens, rng.integers(0, 4, 40)):
            written = tokens if text is tokens else tokens % 4
            reference, numba = both(NO_REPEAT_NGRAM, scores, text, written, n)
            assert np.array_equal(reference, numba)
            changed += not np.array_equal(reference, scores)
    assert changed


@pytest.mark.parametrize("seed", range(10))
def test_sequence_bias(seed):
    rng, scores, tokens = random_case(seed)
    sizes = rng.integers(1, 4, 20)
    sequences = np.full((20, 3), -1)
    for row, size in zip(sequences, sizes, strict=True):
        row[3 - size :] = rng.integers(0, 9, size)
    order = np.argsort(sequences[:, 2], kind="stable")
    biases = rng.choice([-np.inf, -1.5, 0.3, 2.0], 20).astype(np.float32)
    reference, numba = both(SEQUENCE_BIAS, scores, tokens, sequences[order], sizes[order], biases)
    assert np.array_equal(reference, numba) and not np.array_equal(reference, scores)


@pytest.mark.parametrize("kept", [1, 3])
@pytest.mark.parametrize("settings", [
    (0.7, 0, 0, 1, 0, 1, 0, 0), (1, 0.5, 0, 1, 0, 1, 0, 0), (1, 0, 9, 0.8, 0, 1, 0, 0), (1, 0, 0, 1, 0.1, 1, 0, 0),
    (1, 0, 0, 1, 0, 0.5, 0, 0), (1, 0, 0, 1, 0, 1, 0.05, 0), (1, 0, 0, 1, 0, 1, 0, 0.05),
    (1.3, 0.9, 20, 0.9, 0.02, 0.9, 0.01, 0.01)])
def test_truncations(settings, kept):
    temperature, top_h, top_k, top_p, *rest = settings
    for seed in range(10):
        _, scores, _ = random_case(seed)
        found = [scores.copy(), scores.copy()]
        for backend, values in zip(("reference", "numba"), found, strict=True):
            TRUNCATIONS[backend](values, temperature, top_h, top_k, top_p, *rest, kept)
        remaining = [values > -np.inf for values in found]
        assert np.array_equal(*remaining) and remaining[0].sum() >= (kept if top_h == 0 else 1)
        assert np.allclose(found[0][remaining[0]], found[1][remaining[0]], rtol=1e-6)


def test_log_softmax():
    for seed in range(3):
        _, scores, _ = random_case(seed)
        found = both(LOG_SOFTMAX, scores)
        finite = scores > -np.inf
        assert np.allclose(found[0][finite], found[1][finite], atol=1e-5) and not (found[1][~finite] > -np.inf).any()
        assert abs(np.exp(found[1].astype(np.float64)).sum() - 1) < 1e-6
