"""The warped distribution: compiled against the reference and transformers' warpers; sampling by inverse CDF."""

import numpy as np
import pytest
import torch

from foredraft.kernels.sampling.top_k_top_p import inverse_cdf_loop, inverse_cdf_reference, warp_loop, warp_reference

DISTRIBUTIONS = [(1.0, 0, 1.0), (0.5, 5, 1.0), (1.7, 0, 0.6), (0.9, 9, 0.8), (1.0, 1, 1.0), (1.0, 0, 1e-6),
                 (3.0, 10**6, 0.999999)]


@pytest.mark.parametrize("V", [2, 16, 100, 8193])
@pytest.mark.parametrize("temperature, top_k, top_p", DISTRIBUTIONS)
def test_compiled_equals_reference_equals_transformers(V, temperature, top_k, top_p):
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(V).standard_normal(V).astype(np.float32) * 3
    ours, compiled = (np.full(V, np.nan, np.float32) for _ in range(2))
    total = warp_reference(logits, temperature, top_k, top_p, ours)
    total_compiled = warp_loop(logits, np.float32(temperature), top_k, np.float32(top_p), compiled)
    assert ((ours > 0) == (compiled > 0)).all()
    np.testing.assert_allclose(compiled / total_compiled, ours / total, atol=5e-7)

    theirs = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits)[None])
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    np.testing.assert_allclose(ours / total, torch.softmax(theirs[0].double(), -1).numpy(), atol=1e-6)


def test_top_p_over_equal_probabilities_keeps_the_lowest_tokens():
    weights = np.empty(10, np.float32)
    for distribution in (warp_reference, warp_loop):
        distribution(np.zeros(10, np.float32), 1.0, 0, 0.35, weights)
        assert np.nonzero(weights)[0].tolist() == [0, 1, 2, 3]


def test_top_p_of_a_flat_tail():
    """A nucleus of many small weights: the first guess of candidates is too small."""
    logits = np.full(3000, -9.0, np.float32)
    logits[17] = 0.0
    ours, compiled = np.empty(3000, np.float32), np.empty(3000, np.float32)
    warp_reference(logits, 1.0, 0, 0.9, ours)
    warp_loop(logits, 1.0, 0, 0.9, compiled)
    assert (ours > 0).sum() == (compiled > 0).sum() > 100


def test_samples_invert_the_cumulative_distribution():
    weights = np.array([0.0, 2.0, 0.0, 1.0, 1.0, 0.0])
    for draw in (inverse_cdf_reference, inverse_cdf_loop):
        assert [draw(weights, 4.0, u) for u in (1e-12, 0.49, 0.51, 0.74, 0.76, 1 - 1e-12)] == [1, 1, 3, 3, 4, 4]
        # a sum that was rounded up still gives a token that has weight
        assert draw(weights, 4.5, 0.999) == 4


def test_samples_from_many_tokens_agree():
    """Several blocks, with long runs of zero weights between them."""
    draw = np.random.default_rng(4)
    weights = np.where(draw.random(2000) < 0.01, draw.random(2000), 0).astype(np.float32)
    weights[300:1400] = 0
    weights[-600:] = 0
    total = float(weights.sum(dtype=np.float64))
    uniforms = [*draw.random(300), 0.0, 1 - 1e-12]
    assert [inverse_cdf_loop(weights, total, u) for u in uniforms] == [inverse_cdf_reference(weights, total,
                                                                                             u) for u in uniforms]
    assert inverse_cdf_loop(weights, total * 1.01, 0.9999) == np.nonzero(weights)[0][-1]


def test_masked_logits_have_no_weight():
    logits = np.array([0.5, -np.inf, 3.0, -100.0], np.float32)
    for distribution in (warp_reference, warp_loop):
        weights = np.full(4, np.nan, np.float32)
        assert distribution(logits, 1.0, 0, 1.0, weights) == pytest.approx(1 + np.exp(-2.5), rel=1e-6)
        np.testing.assert_allclose(weights, [np.exp(-2.5), 0, 1, 0], rtol=1e-6)
