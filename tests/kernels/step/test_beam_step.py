"""Candidates and steps of beam search: compiled against the reference."""

import numpy as np
import pytest

from foredraft.kernels.sampling.beam_candidates import BEAM_CANDIDATES
from foredraft.kernels.step.beam_step import BEAM_STEP, NEVER


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("n, V, k", [(1, 300, 2), (3, 700, 9), (4, 6, 8)])
def test_candidates(n, V, k, normalise, noise):
    rng = np.random.default_rng(n)
    for seed in range(3):
        logits = rng.standard_normal((n + 1, 2, V)).astype(np.float32) * 3
        scores = rng.standard_normal(n).astype(np.float32)
        found = []
        for backend in ("reference", "numba"):
            values, indices = np.empty(k, np.float32), np.empty(k, np.int64)
            rows = np.arange(n)[::-1].copy()
            BEAM_CANDIDATES[backend](logits, rows, 1, scores, normalise, noise, seed, 7, values, indices)
            found.append((values, indices))
        assert np.array_equal(found[0][1], found[1][1]) and np.allclose(found[0][0], found[1][0], atol=1e-5)


@pytest.mark.parametrize("early_stopping", [0, 1, 2])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0])
def test_steps(early_stopping, length_penalty):
    rng = np.random.default_rng(3)
    for _ in range(20):
        n, V, T = int(rng.integers(1, 5)), 9, 8
        k = 2 * n
        states = []
        for _ in range(2):
            scores = np.full(n, NEVER)
            scores[0] = 0
            states.append([np.zeros((n, T), np.int64), scores, np.full((n, T), -1, np.int32), np.zeros((n, T), np.int64),
                           np.full(n, NEVER), np.full((n, T), -1, np.int32), np.ones(n, np.int64), np.zeros(n, np.bool_),
                           np.ones(1, np.bool_), np.zeros(n, np.int64)])
        over = False
        length = 1
        while not over:
            values = np.sort(rng.standard_normal(k).astype(np.float32) - length)[::-1].copy()
            indices = rng.permutation(n * V)[:k]
            stopped = rng.random(k) < 0.05
            overs = [BEAM_STEP[backend](values, indices, stopped, V, length, T, np.array([1, -1]), length_penalty,
                                        early_stopping, *state)
                     for backend, state in zip(("reference", "numba"), states, strict=True)]
            assert overs[0] == overs[1]
            for ours, theirs in zip(*states, strict=True):
                assert np.array_equal(ours, theirs)
            over, length = overs[0], length + 1
        assert length <= T
