"""Preallocated key and value buffers, written by position.

Self-attention: slot t of a row holds position t; rolling back is moving the state's length, stale slots are overwritten.
Cross-attention: pages of 64 source positions behind a table (today page p of row b is number b * pages + p).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from foredraft.kernels.attention import PAGE, new_pages, write_page


class KVCache:
    """k, v [L, B, H, T, D], pages_k, pages_v [L, P, ...] float32 (kernels/attention.py); table [B, pages], sources [B].

    Buffers only grow, in `reserve`; nothing is allocated while decoding.
    """

    def __init__(self, layers: int, heads: int, head_size: int):
        self.layers, self.heads, self.head_size = layers, heads, head_size
        self.reserve_exactly(0, 0, 0)

    def reserve(self, rows: int, slots: int, source: int) -> None:
        """Make room for `rows` sequences of `slots` decoder positions and `source` source positions each.

        Growing forgets what was cached, so call it before any row is admitted.
        """
        pages = -(-source // PAGE)
        if rows > self.rows or slots > self.slots or pages > self.pages:
            self.reserve_exactly(max(rows, self.rows), max(slots, self.slots), max(pages, self.pages))

    def reserve_exactly(self, rows: int, slots: int, pages: int) -> None:
        self.rows, self.slots, self.pages = rows, slots, pages
        L, H, D = self.layers, self.heads, self.head_size
        self.k, self.v = (np.zeros((L, rows, H, slots, D), np.float32) for _ in range(2))
        self.pages_k, self.pages_v = (a.reshape(L, rows * pages, *a.shape[1:]) for a in new_pages(L * rows * pages, H, D))
        self.table = np.arange(rows * pages, dtype=np.int64).reshape(rows, pages)
        self.sources = np.zeros(rows, np.int64)

    def extend(self, slots: int) -> None:
        """Make room for `slots` decoder positions and keep all that is cached."""
        if slots > self.slots:
            more = ((0, 0), (0, 0), (0, 0), (0, slots - self.slots), (0, 0))
            self.k, self.v, self.slots = np.pad(self.k, more), np.pad(self.v, more), slots

    def write_source(self, layer: int, row: int, k: Tensor, v: Tensor) -> None:
        """Fill a row's pages of one layer: k, v [S, H, D]."""
        k, v, S = k.numpy(), v.numpy(), k.shape[0]
        self.sources[row] = S
        for start in range(0, S, PAGE):
            page = self.table[row, start // PAGE]
            stop = min(start + PAGE, S)
            write_page(self.pages_k[layer, page], self.pages_v[layer, page], k[start:stop], v[start:stop])

    def keep(self, base: Tensor, path: Tensor) -> None:
        """Move the cache rows of an accepted tree path together: slot base + path[:, i] to base + i.

        base [B] is the slot of row 0; path [B, R] ascends, so that no source is overwritten before it is read.
        """
        for b in range(path.shape[0]):
            start = int(base[b])
            if start >= 0:
                slots = start + path[b].numpy()
                for buffer in (self.k, self.v):
                    buffer[:, b, :, start : start + len(slots)] = buffer[:, b][:, :, slots]

    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.k, self.v, self.pages_k, self.pages_v, self.table))
