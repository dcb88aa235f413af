"""Big Little Decoder's rollback: compiled equals reference; threshold 0 is plain decoding, infinity accepts every draft."""

import numpy as np
import pytest

from foredraft.kernels.verify.accept import accept_greedy_reference
from foredraft.kernels.verify.big_little_rollback import rollback_numba, rollback_reference


def case(B, K, V, seed=0):
    """Peaked targets; drafts are the first, the second or any token; logits of positions that are not read are NaN."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((B, K + 1, V)) * 3).astype(np.float32)
    order = np.argsort(-logits, -1)
    drafts = np.take_along_axis(order[:, :K], rng.choice([0, 0, 0, 1, 1, V - 1], (B, K, 1)) % V, -1)[..., 0]
    lengths = rng.integers(0, K + 1, B)
    logits[np.arange(K + 1) > lengths[:, None]] = np.nan
    return logits, drafts, lengths


def verifications(function, logits, drafts, lengths, threshold):
    B, K = drafts.shape
    tokens, counts = np.full((B, K + 1), -7), np.full(B, -7)
    function(logits, drafts, lengths, threshold, tokens, counts)
    return [tokens[b, : counts[b]].tolist() for b in range(B)]


@pytest.mark.parametrize("B, K, V", [(1, 1, 2), (40, 5, 16), (30, 7, 100), (3, 3, 8193), (2, 0, 50)])
@pytest.mark.parametrize("threshold", [0.0, 0.7, 3.0, np.inf])
def test_numba_agrees_with_the_reference(B, K, V, threshold):
    arguments = case(B, K, V)
    assert verifications(rollback_numba, *arguments, threshold) == verifications(rollback_reference, *arguments, threshold)


def test_threshold_zero_and_infinity():
    """Threshold 0 is greedy verification; infinity accepts every draft, followed by the target's argmax."""
    logits, drafts, lengths = case(50, 4, 30, seed=1)
    chosen = np.nan_to_num(logits, nan=-1e9).argmax(-1)
    tokens, counts, path = np.full((50, 5), -7), np.full(50, -7), np.full((50, 5), -7)
    accept_greedy_reference(chosen, drafts, lengths, np.tile(np.arange(4), (50, 1)), tokens, counts, path)
    greedy = [tokens[b, : counts[b]].tolist() for b in range(50)]
    assert verifications(rollback_numba, logits, drafts, lengths, 0.0) == greedy
    whole = [[*drafts[b, : lengths[b]].tolist(), int(chosen[b, lengths[b]])] for b in range(50)]
    assert verifications(rollback_numba, logits, drafts, lengths, np.inf) == whole
    assert greedy != whole


def test_the_distance_is_the_cross_entropy_of_the_draft():
    """The first draft beyond the threshold is replaced by the target's argmax; later drafts are dropped."""
    p = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    logits, drafts = np.log(p).astype(np.float32)[None] + 3, np.array([[1, 2, 1]])
    three = np.array([3])
    for threshold, expected in ((1.1, [0]), (1.25, [1, 0]), (1.7, [1, 2, 1, 2])):
        assert verifications(rollback_numba, logits, drafts, three, threshold) == [expected]


def test_the_argmax_of_a_flat_target_is_accepted():
    logits = np.zeros((1, 2, 1000), np.float32)
    logits[0, :, 5] = 0.1
    assert verifications(rollback_numba, logits, np.array([[5]]), np.array([1]), 1.0) == [[5, 5]]
