"""Copy attention: numba against the reference."""

import numpy as np
import pytest

from foredraft.kernels.core.backend import HAS_NUMBA
from foredraft.kernels.drafting.copy_attention import COPY_ATTENTION, CopyWeights, SourceCache
from foredraft.kernels.model.attention import new_pages, write_page
from foredraft.kernels.model.packing import pack


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
@pytest.mark.parametrize(("n", "C", "U", "H", "D", "F"), [(1, 1, 1, 1, 1, 1), (3, 24, 7, 2, 5, 9), (2, 32, 16, 2, 32, 40)])
def test_numba_equals_reference(n, C, U, H, D, F):
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)  # noqa: E731
    sources = np.array([5, 64, 70])
    pages_k, pages_v = (np.full_like(pages, np.nan) for pages in new_pages(6, H, D))
    table = np.arange(6).reshape(3, 2)
    for b, S in enumerate(sources):
        k, v = draw(S, H, D), draw(S, H, D)
        for page, start in enumerate(range(0, S, 64)):
            # keys past the source's end are read but have no effect
            pages_k[table[b, page]] = 0
            pages_v[table[b, page]] = 0
            write_page(pages_k[table[b, page]], pages_v[table[b, page]], k[start : start + 64], v[start : start + 64])
    M, Q = U + H * D + C, U + 3 * C
    weights = CopyWeights(pack(draw(H * D, Q)), draw(H * D), pack(draw(F, M)), draw(F), pack(draw(C, F)), draw(M), draw(1))
    query, mixed, rows = draw(n, Q), draw(n, M), np.array([2, 0, 1])[:n]
    mixed[:, U : U + H * D] = np.nan
    found = {}
    for name, pointer in COPY_ATTENTION.items():
        out, copied = np.full((n, C), np.nan, np.float32), np.full((n, 80), np.nan, np.float32)
        pointer(query, mixed.copy(), rows, weights, SourceCache(pages_k, pages_v, table, sources), out, copied)
        found[name] = out, copied
    for ours, reference in zip(found["numba"], found["reference"], strict=True):
        np.testing.assert_allclose(ours, reference, atol=2e-5, rtol=1e-4)
    assert (found["numba"][1][:, 70:] == 0).all()
