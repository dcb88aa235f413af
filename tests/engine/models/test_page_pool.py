"""The page pool against a model of plain sets, after every step."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foredraft.engine.models.page_pool import PagePool

ROWS = 6


class Books:
    """What a pool must hold: for each row its pages, in order."""

    def __init__(self, pages: int):
        self.pages, self.held, self.most = pages, {row: 0 for row in range(ROWS)}, 0

    def used(self) -> int:
        return sum(self.held.values())


def check(pool: PagePool, books: Books) -> None:
    owned = [pool.table[row, : pool.pages_per_sequence[row]].tolist() for row in range(ROWS)]
    assert [len(pages) for pages in owned] == list(books.held.values())
    flat = [page for pages in owned for page in pages]
    everything = flat + pool._free
    assert sorted(everything) == list(range(books.pages)) == list(range(pool.pages))
    assert sorted(flat) == sorted(pool.allocated().tolist())
    assert pool.free == books.pages - books.used()
    assert pool.most_used == books.most
    # never touched before it must be
    assert not flat or max(flat) < books.most


def apply(pool: PagePool, books: Books, step: tuple[str, int, int]) -> None:
    kind, row, count = step
    if kind == "take":
        if books.used() - books.held[row] + count > books.pages:
            with pytest.raises(MemoryError, match=f"needs {count} pages"):
                pool.allocate(row, count)
            return
        pool.allocate(row, count)
        books.held[row] = count
    elif kind == "give back":
        pool.release(row)
        books.held[row] = 0
    else:
        pool.reserve(ROWS, books.pages + count, 0)
        books.pages += count
    books.most = max(books.most, books.used())


def opened(pages: int) -> tuple[PagePool, Books]:
    pool = PagePool()
    pool.reserve(ROWS, pages, 3)
    return pool, Books(pages)


STEPS = st.tuples(st.sampled_from(("take", "take", "give back", "grow")), st.integers(0, ROWS - 1), st.integers(0, 9))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 30), st.lists(STEPS, max_size=60))
def test_no_page_is_lost_or_shared_whatever_happens(pages, steps):
    pool, books = opened(pages)
    for step in steps:
        apply(pool, books, step)
        check(pool, books)


def test_ten_thousand_requests_leave_nothing_behind():
    draw, (pool, books) = random.Random(5), opened(40)
    for _ in range(10_000):
        row = draw.randrange(ROWS)
        # 10 to 2,048 source tokens; a cancelled one is given back before its row is taken again
        apply(pool, books, ("take", row, -(-draw.randint(10, 2048) // 64)))
        if draw.random() < 0.5:
            apply(pool, books, ("give back", draw.randrange(ROWS), 0))
        check(pool, books)
    for row in range(ROWS):
        pool.release(row)
    assert pool.free == 40 and len(pool.allocated()) == 0 and np.all(pool.pages_per_sequence == 0)
