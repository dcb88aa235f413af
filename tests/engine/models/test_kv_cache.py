"""Buffers that grow while sequences are admitted, bytes of buffers, and plans within a memory limit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foredraft.engine.models.kv_cache import KVCache
from foredraft.errors import UserError
from foredraft.kernels.model.attention import read_page

L, H, D = 2, 3, 20


def source(cache, sequence):
    """Keys and values [L, S, H, D] of a sequence, read back page by page."""
    S, found = int(cache.sources[sequence]), []
    for layer in range(L):
        pages = [read_page(cache.pages_k[layer, p], cache.pages_v[layer, p])
                 for p in cache.table[sequence, : cache.pool.pages_per_sequence[sequence]]]
        found.append([np.concatenate(part)[:S] for part in zip(*pages, strict=True)])
    return np.array(found)


def write(cache, sequence, S, seed):
    written = torch.randn(L, 2, S, H, D, generator=torch.Generator().manual_seed(seed))
    cache.allocate(sequence, S)
    for layer in range(L):
        cache.write_source(layer, sequence, *written[layer])
    return written.numpy()


def test_growing_keeps_what_admitted_sequences_have_cached():
    cache = KVCache(L, H, D)
    cache.reserve(2, 8, 130)
    kept = {0: write(cache, 0, 130, 0), 1: write(cache, 1, 64, 1)}
    cache.k[:], cache.v[:] = 3, 4
    cache.reserve(4, 12, 700)
    assert cache.k.shape == (L, 4, H, 12, D) and (cache.k[:, :2, :, :8] == 3).all() and (cache.v[:, :2, :, :8] == 4).all()
    kept[3] = write(cache, 3, 700, 3)
    cache.release(0)
    kept[0] = write(cache, 0, 65, 4)
    for sequence, written in kept.items():
        np.testing.assert_array_equal(source(cache, sequence), written)


def test_a_source_wider_than_the_table_widens_it():
    cache = KVCache(L, H, D)
    cache.reserve(2, 4, 10, pages=40)
    written = write(cache, 1, 2048, 0)
    np.testing.assert_array_equal(source(cache, 1), written)
    assert cache.fits(8 * 64) and not cache.fits(8 * 64 + 1)


def test_every_sequence_finds_pages_after_a_reserve_whatever_others_have():
    cache = KVCache(L, H, D)
    for B, S in ((1, 700), (4, 10), (2, 300), (4, 64)):
        cache.reserve(B, 0, S)
        for sequence in range(B):
            cache.allocate(sequence, S)
    assert cache.sources.tolist() == [64, 64, 64, 64] and cache.pool.free == cache.pool.pages - 4


def test_counted_bytes_are_those_of_the_buffers():
    cache = KVCache(L, H, D)
    cache.reserve(5, 9, 100)
    assert cache.nbytes() == sum(a.nbytes for a in (cache.k, cache.v, cache.pages_k, cache.pages_v))
    assert cache.used_bytes() == cache.k.nbytes + cache.v.nbytes
    cache.allocate(3, 65)
    cache.allocate(4, 1)
    cache.release(3)
    assert cache.used_bytes() == cache.k.nbytes + cache.v.nbytes + 3 * cache.page_bytes
    cache.clear()
    assert cache.nbytes() == 0


@given(st.integers(1, 70), st.integers(1, 300), st.integers(1, 2500), st.none() | st.integers(1, 900), st.integers(0, 10**8))
def test_a_plan_stays_below_the_limit_and_uses_what_fits(B, slots, longest, wanted, limit):
    cache = KVCache(L, H, D)
    wide = -(-longest // 64)
    wanted = wanted if wanted is None else max(wanted, wide + B - 1)
    need = cache.sequence_bytes(slots) + wide * cache.page_bytes
    if need > limit:
        with pytest.raises(UserError, match="kv_memory is .* a single request"):
            cache.plan(B, slots, longest, wanted, limit)
        return
    planned, pages = cache.plan(B, slots, longest, wanted, limit)
    assert 1 <= planned <= B and pages >= wide + planned - 1
    assert planned * cache.sequence_bytes(slots) + pages * cache.page_bytes <= limit
    if planned < B:
        # one more would leave too little for the longest source
        assert need + planned * (cache.sequence_bytes(slots) + cache.page_bytes) > limit
    if wanted is None:
        assert planned * cache.sequence_bytes(slots) + (pages + 1) * cache.page_bytes > limit
