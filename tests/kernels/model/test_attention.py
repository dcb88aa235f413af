"""Cached attention: backends against the reference, with and without branches, pages, bits of a query."""

import numpy as np
import pytest

from foredraft.kernels.model import attention as att


def case(B, R, H, D, T, pages, seed=0, tree=False):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    base = rng.integers(0, T - R + 1, B)
    parents = np.tile(np.arange(-1, R - 1), (B, 1))
    positions = base[:, None] + np.arange(R)
    if tree and R >= 4:
        parents[:, 3:] = np.array([0, 3, 0][: R - 3])
        positions[:, 3:] = base[:, None] + np.array([1, 2, 1][: R - 3])
    unread = rng.random((B, R)) < 0.3
    unread[:, 0] = False
    batch, row = np.nonzero(~unread)
    table = rng.permutation(B * pages).reshape(B, pages)
    sources = rng.integers(1, pages * att.PAGE + 1, B)
    n = len(batch)
    pages_k, pages_v = att.new_pages(B * pages, H, D)
    for page in range(B * pages):
        att.write_page(pages_k[page], pages_v[page], normal(att.PAGE, H, D), normal(att.PAGE, H, D))
    return dict(
        q=normal(n, H, D), batch=batch, row=row, positions=positions, parents=parents, k=normal(B, H, T, D),
        v=normal(B, H, T, D), bias=normal(H, T), pages_k=pages_k, pages_v=pages_v, table=table, sources=sources)


SELF = ("q", "batch", "row", "positions", "parents", "k", "v", "bias")
CROSS = ("q", "batch", "pages_k", "pages_v", "table", "sources")
SHAPES = [(1, 1, 1, 1, 2, 1), (2, 3, 5, 7, 11, 2), (3, 6, 2, 16, 40, 3)]


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_self_attention_equals_the_reference(shape, tree):
    c = case(*shape, tree=tree)
    reference = att.self_attention_reference(*(c[name] for name in SELF))
    np.testing.assert_allclose(att.self_attention_numba(*(c[name] for name in SELF)), reference, atol=1e-5)
    out = np.full_like(reference, np.nan)
    att._self_tasks(c["q"].shape[0] * c["q"].shape[1], 3, *(c[name] for name in SELF), out)
    np.testing.assert_allclose(out, reference, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_attention_equals_the_reference(shape):
    c = case(*shape)
    reference = att.cross_attention_reference(*(c[name] for name in CROSS))
    np.testing.assert_allclose(att.cross_attention_numba(*(c[name] for name in CROSS)), reference, atol=1e-5)
    out = np.full_like(reference, np.nan)
    starts = att._groups(c["batch"], c["table"])
    att._cross_tasks((len(starts) - 1) * c["q"].shape[1], 3, c["q"], c["batch"], starts, *(c[name] for name in CROSS[2:]),
                     out)
    np.testing.assert_allclose(out, reference, atol=1e-5)


def test_invisible_slots_and_pages_do_not_matter():
    c = case(2, 3, 2, 8, 20, 2, seed=3)
    before = att.self_attention_numba(*(c[name] for name in SELF)), att.cross_attention_numba(*(c[name] for name in CROSS))
    for b in range(2):
        c["k"][b, :, c["positions"][b, -1] + 1 :] = np.nan
        c["v"][b, :, c["positions"][b, -1] + 1 :] = np.nan
        for place in range(c["sources"][b], 2 * att.PAGE):
            page, at = c["table"][b, place // att.PAGE], place % att.PAGE
            c["pages_k"][page, :, at // 16, :, at % 16] = np.nan
            c["pages_v"][page, :, :, at] = np.nan
    after = att.self_attention_numba(*(c[name] for name in SELF)), att.cross_attention_numba(*(c[name] for name in CROSS))
    assert (before[0] == after[0]).all() and (before[1] == after[1]).all()


def test_the_bits_of_a_query_do_not_depend_on_the_other_queries():
    c = case(3, 4, 2, 16, 30, 2, seed=4)
    whole = att.self_attention_numba(*(c[name] for name in SELF)), att.cross_attention_numba(*(c[name] for name in CROSS))
    for i in range(len(c["batch"])):
        one = c | {name: c[name][i : i + 1] for name in ("q", "batch", "row")}
        assert (att.self_attention_numba(*(one[name] for name in SELF))[0] == whole[0][i]).all()
        assert (att.cross_attention_numba(*(one[name] for name in CROSS))[0] == whole[1][i]).all()


@pytest.mark.parametrize("count, D", [(1, 4), (17, 16), (64, 20)])
def test_read_page_inverts_write_page(count, D):
    rng = np.random.default_rng(5)
    k, v = (rng.standard_normal((count, 3, D)).astype(np.float32) for _ in range(2))
    pages = att.new_pages(1, 3, D)
    att.write_page(pages[0][0], pages[1][0], k, v)
    found = att.read_page(pages[0][0], pages[1][0])
    assert (found[0][:count] == k).all() and (found[1][:count] == v).all()
