"""Which pages of a pool belong to which row.

A page holds 64 source positions of every layer (kernels/model/attention.py); this file knows their numbers only.
"""

from __future__ import annotations

import numpy as np


class PagePool:
    """Rows take and give back whole pages of one pool: no page has two owners, and none is lost.

    pages: in the pool. table [B, W] int64: row b holds table[b, : held[b]]; held [B] int64. most_used: the most pages that
    were ever held at once. A page that was given back is taken again before one that never was: memory beyond most_used
    pages is never touched.
    """

    def __init__(self):
        self.table, self.held = np.zeros((0, 0), np.int64), np.zeros(0, np.int64)
        self.pages = self.most_used = 0
        # a stack: the next page to take comes last
        self._free: list[int] = []

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def width(self) -> int:
        """Pages that the table has room for in a row."""
        return self.table.shape[1]

    def reserve(self, rows: int, pages: int, width: int) -> None:
        """At least so many rows, pages in all, and pages a row; what is held stays."""
        B, W = self.table.shape
        rows, width = max(rows, B), max(width, W)
        if (rows, width) != (B, W):
            self.table = np.pad(self.table, ((0, rows - B), (0, width - W)))
            self.held = np.pad(self.held, (0, rows - B))
        if pages > self.pages:
            self._free[:0] = range(pages - 1, self.pages - 1, -1)
            self.pages = pages

    def take(self, row: int, count: int) -> None:
        """Give `row` `count` pages in place of those it holds. MemoryError: fewer are free, and nothing has changed."""
        if count > self.free + int(self.held[row]):
            raise MemoryError(f"row {row} asks for {count} pages, {self.free} of {self.pages} are free")
        self.give_back(row)
        self.reserve(0, 0, count)
        for place in range(count):
            self.table[row, place] = self._free.pop()
        self.held[row] = count
        self.most_used = max(self.most_used, self.pages - self.free)

    def give_back(self, row: int) -> None:
        """Free what `row` holds; a row that holds nothing changes nothing."""
        count = int(self.held[row])
        self._free.extend(self.table[row, :count][::-1].tolist())
        self.held[row] = 0

    def taken(self) -> np.ndarray:
        """The numbers of all pages held, [n] int64."""
        return self.table[np.arange(self.width) < self.held[:, None]]
