"""Which pages of a pool belong to which sequence.

A page holds 64 source positions of every layer (kernels/model/attention.py). This file knows page numbers only.
"""

from __future__ import annotations

import numpy as np


class PagePool:
    """Sequences allocate and release whole pages of one pool: no page has two owners, and none is lost.

    A sequence may read another sequence's pages (`share`), until their owner releases them.

    A released page is allocated again before one that never was, so that memory beyond `most_used` pages is never touched.

    Attributes
    ----------
    pages : int
        In the pool.
    table : np.ndarray [B, W] int64
        Sequence b has the pages table[b, : pages_per_sequence[b]].
    pages_per_sequence : np.ndarray [B] int64
    most_used : int
        The most pages that were ever allocated at once.
    """

    def __init__(self):
        self.table, self.pages_per_sequence = np.zeros((0, 0), np.int64), np.zeros(0, np.int64)
        self.pages = self.most_used = 0
        # a stack: the next page to allocate comes last
        self._free: list[int] = []

    @property
    def free(self) -> int:
        """Pages that are not allocated."""
        return len(self._free)

    @property
    def width(self) -> int:
        """W, the most pages of a sequence that the table has room for."""
        return self.table.shape[1]

    def reserve(self, num_sequences: int, pages: int, width: int) -> None:
        """Grow to at least so many sequences, pages in all, and pages per sequence; allocated pages stay."""
        B, W = self.table.shape
        num_sequences, width = max(num_sequences, B), max(width, W)
        if (num_sequences, width) != (B, W):
            self.table = np.pad(self.table, ((0, num_sequences - B), (0, width - W)))
            self.pages_per_sequence = np.pad(self.pages_per_sequence, (0, num_sequences - B))
        if pages > self.pages:
            self._free[:0] = range(pages - 1, self.pages - 1, -1)
            self.pages = pages

    def allocate(self, sequence: int, count: int) -> None:
        """Give a sequence `count` pages in place of those it has. MemoryError: fewer are free, and nothing has changed."""
        if count > self.free + int(self.pages_per_sequence[sequence]):
            raise MemoryError(f"sequence {sequence} needs {count} pages, {self.free} of {self.pages} are free")
        self.release(sequence)
        self.reserve(0, 0, count)
        first = len(self._free) - count
        self.table[sequence, :count] = self._free[first:][::-1]
        # KeyboardInterrupt is raised at calls: with none between these two lines it can neither lose nor share a page
        del self._free[first:]
        self.pages_per_sequence[sequence] = count
        self.most_used = max(self.most_used, self.pages - self.free)

    def share(self, owner: int, sequence: int) -> None:
        """Let `sequence` read the pages of `owner`. Its own pages are released."""
        self.release(sequence)
        self.table[sequence] = self.table[owner]

    def release(self, sequence: int) -> None:
        """Free a sequence's pages, if it has any."""
        count = int(self.pages_per_sequence[sequence])
        pages = self.table[sequence, :count][::-1].tolist()
        # as in `allocate`: no call between these two lines
        self.pages_per_sequence[sequence] = 0
        self._free.extend(pages)

    def allocated(self) -> np.ndarray:
        """The numbers of all allocated pages, [n] int64."""
        return self.table[np.arange(self.width) < self.pages_per_sequence[:, None]]
