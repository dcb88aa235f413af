"""Random inputs of the verification kernels: dense, point-mass and greedy sequences in one batch."""

from __future__ import annotations

import numpy as np


def case(B, K, V, seed=0):
    """The arguments of accept_reference, without its outputs."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((B, K + 1, V)).astype(np.float32) * 2
    draft_logits = logits[:, :K] + rng.standard_normal((B, K, V)).astype(np.float32)
    temperature = rng.choice([0.0, 0.7, 1.0], B).astype(np.float32)
    dense = (rng.random(B) < 0.5) & (temperature > 0)
    draft_tokens = np.where(rng.random((B, K)) < 0.5, logits[:, :K].argmax(-1), rng.integers(0, V, (B, K)))
    parents = np.tile(np.arange(K), (B, 1))
    lse = np.log(np.exp(draft_logits.astype(np.float64)).sum(-1))
    return [logits, draft_tokens, rng.integers(0, K + 1, B), parents, dense, draft_logits, lse, temperature,
            rng.choice([0, 5], B), rng.choice([1.0, 0.9], B).astype(np.float32), rng.integers(-(2**62), 2**62, B),
            rng.integers(1, 100, B)]


def outputs(B, K):
    return [np.full((B, K + 1), -7), np.full(B, -7), np.full((B, K + 1), -7)]


def verifications(function, arguments, B, K):
    """(emitted tokens, accepted path) of every sequence."""
    tokens, counts, path = outputs(B, K)
    function(*arguments, tokens, counts, path)
    return [(tokens[b, : counts[b]].tolist(), path[b, : counts[b]].tolist()) for b in range(B)]
