"""Children of a tree node: numba against the reference, and the distribution of each child."""

import numpy as np
import pytest

from foredraft.kernels.drafting.tree_children import CHILDREN, children_numba
from foredraft.kernels.drafting.vocabulary_head import VocabularyHead, sample_draft_reference
from foredraft.kernels.sampling.top_k_top_p import warp_reference


def shortlist(F, own, V, rng):
    """A vocabulary of F common tokens and `own` of the source, one sequence."""
    ids = rng.permutation(V)[: F + own]
    head = np.zeros((1, 1, 16), np.float32)
    return VocabularyHead(ids[:F], head, ids[None, F:], head[None], np.array([own]), np.zeros((1, 0), np.int64))


def draw(children, scores, found, distribution, first, most, replaced, K, V):
    drafted, logits, lse = np.full(K, -1), np.full((K, V), np.nan, np.float32), np.full(K, np.nan)
    count = children(scores.copy(), 0, found, *distribution, first, most, replaced, drafted, logits, lse)
    return count, drafted, logits, lse


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("temperature, top_k, top_p", [(0.0, 0, 1.0), (0.8, 0, 1.0), (1.3, 3, 1.0), (1.0, 0, 0.6)])
@pytest.mark.parametrize("F, own, V", [(2, 0, 2), (5, 4, 16), (300, 11, 400)])
def test_numba_equals_the_reference(replaced, temperature, top_k, top_p, F, own, V):
    rng = np.random.default_rng(F)
    found = shortlist(F, own, V, rng)
    for seed in range(20):
        scores = (2 * rng.standard_normal(F + own)).astype(np.float32)
        distribution = (np.float32(temperature), top_k, np.float32(top_p), seed, 7)
        ours, theirs = (draw(children, scores, found, distribution, 2, 4, replaced, 6, V) for children in CHILDREN.values())
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])
        if temperature == 0:
            assert ours[0] == min(4, F + own) and np.isnan(ours[2]).all()
            continue
        drawn = slice(2, 2 + ours[0])
        np.testing.assert_allclose(ours[2][drawn], theirs[2][drawn], atol=1e-5)
        np.testing.assert_allclose(ours[3][drawn], theirs[3][drawn], atol=1e-5)


@pytest.mark.parametrize("replaced", [False, True])
def test_the_distribution_of_each_child(replaced):
    """Without replacement: the first distribution without earlier tokens, renormalised; no more children than tokens."""
    rng, V = np.random.default_rng(1), 12
    found = shortlist(6, 2, V, rng)
    scores = rng.standard_normal(8).astype(np.float32)
    weights = np.empty(8, np.float32)
    q = np.zeros(V)
    total = warp_reference(scores, 0.9, 5, 1.0, weights)
    q[np.concatenate((found.tokens, found.own_tokens[0]))] = weights / total
    count, drafted, logits, lse = draw(children_numba, scores, found, (np.float32(0.9), 5, np.float32(1), 3, 4), 0, 7,
                                       replaced, 8, V)
    assert count == (7 if replaced else 5)
    for place in range(count):
        distribution = np.exp(logits[place].astype(np.float64) - lse[place])
        np.testing.assert_allclose(distribution, q / q.sum(), atol=1e-6)
        if not replaced:
            q[drafted[place]] = 0
    assert replaced or len(set(drafted[:count])) == count


def test_one_child_is_an_ordinary_draft():
    rng, V = np.random.default_rng(2), 40
    found = shortlist(30, 5, V, rng)
    for seed, temperature in ((1, 0.0), (2, 1.0), (3, 0.7)):
        scores, place = rng.standard_normal(35).astype(np.float32), 2
        distribution = [np.array([value]) for value in (np.float32(temperature), 0, np.float32(1), seed, 9)]
        drafted, logits, lse = np.full((1, 4), -1), np.zeros((1, 4, V), np.float32), np.zeros((1, 4))
        sample_draft_reference(scores[None], [0], found, *distribution, place, drafted, logits, lse)
        ours = draw(children_numba, scores, found, [item[0] for item in distribution], place, 1, False, 4, V)
        assert ours[0] == 1 and ours[1][place] == drafted[0, place]
        if temperature:
            np.testing.assert_allclose(ours[2][place], logits[0, place], atol=1e-5)
            np.testing.assert_allclose(ours[3][place], lse[0, place], atol=1e-6)
