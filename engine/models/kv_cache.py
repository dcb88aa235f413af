"""Key and value buffers, written by position.

Self-attention: slot t of a row holds position t; rolling back is moving the state's length, stale slots are overwritten, and
a new request takes a row over as the last one left it.
Cross-attention: a pool of pages of 64 source positions (pages.py) behind a table, so that sources of any length share it.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from foredraft.engine.models.page_pool import PagePool
from foredraft.errors import UserError
from foredraft.kernels.model.attention import PAGE, new_pages, write_page
from foredraft.kernels.step.compact_tree_kv import BACKEND, KEEP


def pages_of(source: int) -> int:
    """Pages that S source positions take."""
    return -(-source // PAGE)


class KVCache:
    """k, v [L, B, H, T, D], pages_k, pages_v [L, P, ...] float32 (kernels/model/attention.py); table [B, W], sources [B] int64.

    Buffers grow in `reserve` only, and keep what admitted rows have cached; nothing is allocated while decoding.
    """

    def __init__(self, layers: int, heads: int, head_size: int):
        self.layers, self.heads, self.head_size = layers, heads, head_size
        one_k, one_v = new_pages(1, heads, head_size)
        self.page_bytes = layers * (one_k.nbytes + one_v.nbytes)
        # to a scheduler, whose rows nobody else may touch
        self.is_lent = False
        self.clear()

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self.rows = self.slots = 0
        self.pool = PagePool()
        self.sources = np.zeros(0, np.int64)
        self.k, self.v = self._slots(0, 0), self._slots(0, 0)
        self.pages_k, self.pages_v = self._pages(0)

    def _slots(self, rows: int, slots: int) -> np.ndarray:
        return np.zeros((self.layers, rows, self.heads, slots, self.head_size), np.float32)

    def _pages(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        pages = new_pages(self.layers * count, self.heads, self.head_size)
        return tuple(array.reshape(self.layers, count, *array.shape[1:]) for array in pages)

    @property
    def table(self) -> np.ndarray:
        return self.pool.table

    def row_bytes(self, slots: int) -> int:
        """Of the self-attention keys and values of a row."""
        return 2 * 4 * self.layers * self.heads * slots * self.head_size

    def nbytes(self, rows: int = 0, slots: int = 0, pages: int = 0) -> int:
        """Of all keys and values, after growing to so many rows, slots and pages."""
        row = self.row_bytes(max(slots, self.slots))
        return max(rows, self.rows) * row + max(pages, self.pool.pages) * self.page_bytes

    def used_bytes(self) -> int:
        """Of the rows and of the pages that were ever held: the others are addresses without memory behind them."""
        return self.rows * self.row_bytes(self.slots) + self.pool.most_used * self.page_bytes

    def plan(self, rows: int, slots: int, longest: int, pages: int | None, limit: int) -> tuple[int, int]:
        """(rows, pages) that `limit` bytes hold: at most `rows` of `slots` positions, at most `pages` (None: all that fit).

        A source of `longest` positions finds room beside a page for each other row. UserError: not even one row.
        """
        row, page, wide = self.row_bytes(slots), self.page_bytes, max(1, pages_of(longest))
        rows = min(rows, (limit - (wide - 1) * page) // (row + page))
        if rows < 1:
            raise UserError(
                f"kv_memory is {limit / 1e6:,.1f} MB; a single request of {longest} source tokens and {slots} positions "
                f"needs {(row + wide * page) / 1e6:,.1f} MB: raise it, or lower max_source or max_new_tokens")
        room = (limit - rows * row) // page
        return rows, room if pages is None else min(pages, room)

    def reserve(self, rows: int, slots: int, source: int, pages: int | None = None) -> None:
        """Make room for `rows` sequences of `slots` decoder positions and `source` source positions each.

        pages: of the whole pool, where fewer than the rows' longest sources need will do (admission looks at what is free).
        """
        if pages is None:
            # each of the rows may hold such a source in place of what it holds, and the rows above keep what they hold
            before = np.pad(self.pool.held, (0, max(0, rows - self.rows)))
            pages = int(np.maximum(before[:rows], pages_of(source)).sum() + before[rows:].sum())
        rows, slots = max(rows, self.rows), max(slots, self.slots)
        held = self.pool.taken()
        if (rows, slots) != (self.rows, self.slots):
            # where there is nothing to keep the old buffers go before the new ones come
            old = (self.k, self.v) if len(held) else ()
            self.k = self.v = None
            self.k, self.v = self._slots(rows, slots), self._slots(rows, slots)
            for new, kept in zip((self.k, self.v), old, strict=False):
                new[:, : self.rows, :, : self.slots] = kept
            self.sources = np.pad(self.sources, (0, rows - self.rows))
            self.rows, self.slots = rows, slots
        if pages > self.pool.pages:
            old = (self.pages_k, self.pages_v) if len(held) else ()
            self.pages_k = self.pages_v = None
            self.pages_k, self.pages_v = self._pages(pages)
            for new, kept in zip((self.pages_k, self.pages_v), old, strict=False):
                new[:, held] = kept[:, held]
            self.pool.most_used = len(held)
        self.pool.reserve(rows, pages, pages_of(source))

    def fits(self, source: int) -> bool:
        """Whether S source positions find free pages."""
        return pages_of(source) <= self.pool.free

    def hold(self, row: int, source: int) -> None:
        """Take the pages of a row's source of S positions, in place of those of the row's last one. MemoryError."""
        self.pool.take(row, pages_of(source))
        self.sources[row] = source

    def release(self, row: int) -> None:
        """Give a row's pages back; its slots stay as they are."""
        self.pool.give_back(row)
        self.sources[row] = 0

    def write_source(self, layer: int, row: int, k: Tensor, v: Tensor) -> None:
        """Fill the pages that a row holds, of one layer: k, v [S, H, D]."""
        k, v, S = k.numpy(), v.numpy(), k.shape[0]
        for start in range(0, S, PAGE):
            page = self.table[row, start // PAGE]
            stop = min(start + PAGE, S)
            write_page(self.pages_k[layer, page], self.pages_v[layer, page], k[start:stop], v[start:stop])

    def keep(self, base: Tensor, path: Tensor) -> None:
        """Move the cache rows of an accepted tree path together: slot base + path[:, i] to base + i.

        base [B] is the slot of row 0; path [B, R] as in kernels/step/compact_tree_kv.py.
        """
        KEEP[BACKEND](self.k, self.v, base.numpy(), path.numpy())
