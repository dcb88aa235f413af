"""The head over a draft vocabulary: numba against the reference, on packed and quantised weights."""

import numpy as np
import pytest

from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.drafting.vocabulary_head import SAMPLE_DRAFT, VOCABULARY_HEAD, VocabularyHead
from foredraft.kernels.model.packing import pack, quantize_int8, take_outputs

rng = np.random.default_rng(0)


def stored(weight: np.ndarray, kind: str) -> np.ndarray:
    if kind == "int8":
        return quantize_int8(weight)
    return pack(weight if kind == "fp32" else (weight.view(np.uint32) >> 16).astype(np.uint16))


def lists(V: int, F: int, kind: str) -> tuple[VocabularyHead, np.ndarray]:
    """Two sequences, one with three tokens of its own, and scores filled with NaN."""
    head = stored(rng.standard_normal((V, 8)).astype(np.float32), kind)
    ids = rng.permutation(V)[:F]
    own = np.setdiff1d(np.arange(V), ids)[:3]
    own_ids, counts = np.zeros((2, 16), np.int64), np.array([0, len(own)])
    own_head = np.zeros((2, 1, *head.shape[1:]), head.dtype)
    if len(own):
        own_ids[1, : len(own)], own_head[1] = own, take_outputs(head, own)
    places = np.array([[0, F - 1, 0, 0], [0, F, F, F - 1]]) if len(own) else np.zeros((2, 4), np.int64)
    some = VocabularyHead(ids, take_outputs(head, ids), own_ids, own_head, counts, places)
    return some, np.full((2, F + 16), np.nan, np.float32)


@pytest.mark.first(1)
@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
@pytest.mark.parametrize(("V", "F", "kind"), [(1, 1, "fp32"), (100, 37, "fp32"), (100, 37, "bf16"), (8193, 512, "int8")])
@pytest.mark.parametrize("distribution", [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.8, 5, 0.9)])
def test_numba_equals_reference(V, F, kind, distribution):
    some, blank = lists(V, F, kind)
    x = rng.standard_normal((2, 8)).astype(np.float32)
    copied = rng.random((2, 4)).astype(np.float32)
    rows = np.array([0, 1])
    temperature, top_k, top_p = (np.full(2, value, dtype) for value,
                                 dtype in zip(distribution, ("f4", "i8", "f4"), strict=True))
    found = {}
    for name in VOCABULARY_HEAD:
        scores = blank.copy()
        VOCABULARY_HEAD[name](x, rows, some, copied, scores)
        drafted, logits, lse = np.full((2, 3), -1), np.full((2, 3, V), np.nan, np.float32), np.full((2, 3), np.nan)
        keys = np.array([5, 6]), np.array([2, 9])
        SAMPLE_DRAFT[name](scores, rows, some, temperature, top_k, top_p, *keys, 1, drafted, logits, lse)
        found[name] = scores, drafted, logits, lse
    for ours, reference in zip(found["numba"], found["reference"], strict=True):
        np.testing.assert_allclose(ours, reference, atol=2e-5, rtol=1e-4)
    _, drafted, logits, lse = found["numba"]
    if distribution[0] > 0:
        q = np.exp(logits[:, 1].astype(np.float64) - lse[:, 1:2])
        np.testing.assert_allclose(q.sum(1), 1, atol=1e-5)
        assert (q[[0, 1], drafted[:, 1]] > 0).all()
        outside = np.setdiff1d(np.arange(V), some.tokens)
        assert (q[0, outside] == 0).all()
