"""The page pool against a simple model, after every step."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foredraft.engine.models.page_pool import PagePool

B = 6


class Books:
    """The model: how many pages each sequence has."""

    def __init__(self, pages: int):
        self.pages, self.counts, self.most = pages, {sequence: 0 for sequence in range(B)}, 0

    def used(self) -> int:
        return sum(self.counts.values())


def check(pool: PagePool, books: Books) -> None:
    owned = [pool.table[sequence, : pool.pages_per_sequence[sequence]].tolist() for sequence in range(B)]
    assert [len(pages) for pages in owned] == list(books.counts.values())
    flat = [page for pages in owned for page in pages]
    everything = flat + pool._free
    assert sorted(everything) == list(range(books.pages)) == list(range(pool.pages))
    assert sorted(flat) == sorted(pool.allocated().tolist())
    assert pool.free == books.pages - books.used()
    assert pool.most_used == books.most
    # never touched before it must be
    assert not flat or max(flat) < books.most


def apply(pool: PagePool, books: Books, step: tuple[str, int, int]) -> None:
    kind, sequence, count = step
    if kind == "allocate":
        if books.used() - books.counts[sequence] + count > books.pages:
            with pytest.raises(MemoryError, match=f"needs {count} pages"):
                pool.allocate(sequence, count)
            return
        pool.allocate(sequence, count)
        books.counts[sequence] = count
    elif kind == "release":
        pool.release(sequence)
        books.counts[sequence] = 0
    else:
        pool.reserve(B, books.pages + count, 0)
        books.pages += count
    books.most = max(books.most, books.used())


def opened(pages: int) -> tuple[PagePool, Books]:
    pool = PagePool()
    pool.reserve(B, pages, 3)
    return pool, Books(pages)


STEPS = st.tuples(st.sampled_from(("allocate", "allocate", "release", "grow")), st.integers(0, B - 1), st.integers(0, 9))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 30), st.lists(STEPS, max_size=60))
def test_no_page_is_lost_or_shared(pages, steps):
    pool, books = opened(pages)
    for step in steps:
        apply(pool, books, step)
        check(pool, books)


def test_ten_thousand_requests_leave_nothing_behind():
    draw, (pool, books) = random.Random(5), opened(40)
    for _ in range(10_000):
        sequence = draw.randrange(B)
        # 10 to 2,048 source tokens; a cancelled request is released before its sequence is allocated again
        apply(pool, books, ("allocate", sequence, -(-draw.randint(10, 2048) // 64)))
        if draw.random() < 0.5:
            apply(pool, books, ("release", draw.randrange(B), 0))
        check(pool, books)
    for sequence in range(B):
        pool.release(sequence)
    assert pool.free == 40 and len(pool.allocated()) == 0 and np.all(pool.pages_per_sequence == 0)
