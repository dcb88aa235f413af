"""Key and value buffers, written by position.

Self-attention: slot t of a sequence holds position t. Rolling back lowers the state's length, and later writes overwrite the
stale slots. A new request uses a sequence's slots as the last request left them.
Cross-attention: a pool of pages of 64 source positions (page_pool.py), so that sources of any length share it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foredraft.engine.models.page_pool import PagePool
from foredraft.errors import UserError
from foredraft.kernels.model.attention import PAGE, new_pages, write_page
from foredraft.kernels.step.compact_tree_kv import BACKEND, COMPACT


def pages_of(source: int) -> int:
    """Pages that S source positions take."""
    return -(-source // PAGE)


class KVCache:
    """Keys and values of a decoder. Only `reserve` allocates; admitted sequences keep what they have cached.

    Attributes
    ----------
    k, v : np.ndarray [L, B, H, T, D] float32
        Self-attention, T slots of B sequences.
    pages_k, pages_v : np.ndarray [L, P, ...] float32, or bfloat16 bits as uint16
        Cross-attention, P pages (kernels/model/attention.py).
    table : np.ndarray [B, W] int64
        The pages of each sequence.
    sources : np.ndarray [B] int64
        Source lengths.
    num_sequences, slots : int
        B and T.
    """

    def __init__(self, layers: int, heads: int, head_size: int, page_type: type = np.float32):
        self.layers, self.heads, self.head_size, self.page_type = layers, heads, head_size, page_type
        one_k, one_v = new_pages(1, heads, head_size, page_type)
        self.page_bytes = layers * (one_k.nbytes + one_v.nbytes)
        self.clear()

    def clear(self) -> None:
        """Forget everything and release the memory."""
        self.num_sequences = self.slots = 0
        self.pool = PagePool()
        self.sources = np.zeros(0, np.int64)
        self.k, self.v = self._slots(0, 0), self._slots(0, 0)
        self.pages_k, self.pages_v = self._pages(0)

    def _slots(self, num_sequences: int, slots: int) -> np.ndarray:
        return np.zeros((self.layers, num_sequences, self.heads, slots, self.head_size), np.float32)

    def _pages(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        pages = new_pages(self.layers * count, self.heads, self.head_size, self.page_type)
        return tuple(array.reshape(self.layers, count, *array.shape[1:]) for array in pages)

    @property
    def table(self) -> np.ndarray:
        return self.pool.table

    def sequence_bytes(self, slots: int) -> int:
        """Bytes of a sequence's self-attention keys and values."""
        return 2 * 4 * self.layers * self.heads * slots * self.head_size

    def nbytes(self, num_sequences: int = 0, slots: int = 0, pages: int = 0) -> int:
        """Bytes of all keys and values, after growing to so many sequences, slots and pages."""
        sequence = self.sequence_bytes(max(slots, self.slots))
        return max(num_sequences, self.num_sequences) * sequence + max(pages, self.pool.pages) * self.page_bytes

    def used_bytes(self) -> int:
        """Bytes of the slots and of the pages that were ever allocated: no memory stands behind the others yet."""
        return self.num_sequences * self.sequence_bytes(self.slots) + self.pool.most_used * self.page_bytes

    def plan(self, num_sequences: int, slots: int, longest: int, pages: int | None, limit: int) -> tuple[int, int]:
        """Choose how many sequences and pages to reserve within a memory limit.

        Parameters
        ----------
        num_sequences, slots : int
            The most sequences wanted, and decoder positions of each.
        longest : int
            Source positions of the longest source; it must fit beside one page for every other sequence.
        pages : int, optional
            The most pages wanted; by default as many as fit.
        limit : int
            Bytes.

        Returns
        -------
        tuple[int, int]
            Sequences and pages.

        Raises
        ------
        UserError
            Not even one sequence fits.
        """
        sequence, page, longest_pages = self.sequence_bytes(slots), self.page_bytes, max(1, pages_of(longest))
        num_sequences = min(num_sequences, (limit - (longest_pages - 1) * page) // (sequence + page))
        if num_sequences < 1:
            raise UserError(
                f"kv_memory is {limit / 1e6:,.1f} MB; a single request of {longest} source tokens and {slots} positions "
                f"needs {(sequence + longest_pages * page) / 1e6:,.1f} MB: raise it, or lower max_source or max_new_tokens")
        room = (limit - num_sequences * sequence) // page
        return num_sequences, room if pages is None else min(pages, room)

    def reserve(self, num_sequences: int, slots: int, source: int, pages: int | None = None) -> None:
        """Grow to room for sequences of so many decoder and source positions each.

        Parameters
        ----------
        num_sequences, slots, source : int
            B, T and S.
        pages : int, optional
            Of the whole pool. By default every sequence can have a source of S positions; a caller that checks `fits` before
            it admits needs fewer.
        """
        if pages is None:
            # each sequence may exchange its source for one of S positions; sequences beyond B keep theirs
            before = np.pad(self.pool.pages_per_sequence, (0, max(0, num_sequences - self.num_sequences)))
            pages = int(np.maximum(before[:num_sequences], pages_of(source)).sum() + before[num_sequences:].sum())
        try:
            self._grow(max(num_sequences, self.num_sequences), max(slots, self.slots), pages, pages_of(source))
        except BaseException:
            # out of memory, or an interrupt: release all buffers, so that none is missing
            self.clear()
            raise

    def _grow(self, num_sequences: int, slots: int, pages: int, width: int) -> None:
        allocated = self.pool.allocated()
        if (num_sequences, slots) != (self.num_sequences, self.slots):
            # old buffers with nothing to keep are released before the new ones are allocated
            old = (self.k, self.v) if len(allocated) else ()
            self.k = self.v = None
            self.k, self.v = self._slots(num_sequences, slots), self._slots(num_sequences, slots)
            for new, kept in zip((self.k, self.v), old, strict=False):
                new[:, : self.num_sequences, :, : self.slots] = kept
            self.sources = np.pad(self.sources, (0, num_sequences - self.num_sequences))
            self.num_sequences, self.slots = num_sequences, slots
        if pages > self.pool.pages:
            old = (self.pages_k, self.pages_v) if len(allocated) else ()
            self.pages_k = self.pages_v = None
            self.pages_k, self.pages_v = self._pages(pages)
            for new, kept in zip((self.pages_k, self.pages_v), old, strict=False):
                new[:, allocated] = kept[:, allocated]
            self.pool.most_used = len(allocated)
        self.pool.reserve(num_sequences, pages, width)

    def fits(self, source: int) -> bool:
        """Whether enough pages are free for S source positions."""
        return pages_of(source) <= self.pool.free

    def check_source(self, source: int) -> None:
        """UserError where S source positions can never find enough pages."""
        if pages_of(source) > self.pool.pages:
            needed, most = (pages * self.page_bytes / 1e6 for pages in (pages_of(source), self.pool.pages))
            raise UserError(f"{source} source tokens need {needed:,.1f} MB of keys and values, kv_memory leaves {most:,.1f} "
                            "MB; raise it, or lower max_source")

    def allocate(self, sequence: int, source: int) -> None:
        """Allocate pages for a sequence's source of S positions, in place of its last one. MemoryError: too few are free."""
        self.pool.allocate(sequence, pages_of(source))
        self.sources[sequence] = source

    def release(self, sequence: int) -> None:
        """Free a sequence's pages; its slots stay as they are."""
        self.pool.release(sequence)
        self.sources[sequence] = 0

    def share(self, owner: int, sequence: int) -> None:
        """Let `sequence` read the source of `owner`, which must not release it before."""
        self.pool.share(owner, sequence)
        self.sources[sequence] = self.sources[owner]

    def copy_slots(self, source: int, sequence: int, first: int, last: int) -> int:
        """Copy the slots [first, last) of sequence `source` to `sequence`; returns the bytes copied."""
        for cache in (self.k, self.v):
            cache[:, sequence, :, first:last] = cache[:, source, :, first:last]
        return self.sequence_bytes(last - first)

    def write_source(self, layer: int, sequence: int, k: Tensor, v: Tensor) -> None:
        """Write one layer's cross-attention keys and values [S, H, D] into the pages of the sequence."""
        S = k.shape[0]
        k, v = (self._as_stored(values) for values in (k, v))
        for start in range(0, S, PAGE):
            page = self.table[sequence, start // PAGE]
            stop = min(start + PAGE, S)
            write_page(self.pages_k[layer, page], self.pages_v[layer, page], k[start:stop], v[start:stop])

    def _as_stored(self, values: Tensor) -> np.ndarray:
        if self.page_type == np.float32:
            return values.numpy()
        return values.bfloat16().view(torch.int16).numpy().view(np.uint16)

    def keep(self, base: Tensor, path: Tensor) -> None:
        """Make the slots of accepted tree paths contiguous (kernels/step/compact_tree_kv.py).

        Parameters
        ----------
        base : Tensor [B] int64
            Slot of query position 0.
        path : Tensor [B, R] int64
            Accepted query positions, root first: slot base + path[:, i] moves to base + i.
        """
        COMPACT[BACKEND](self.k, self.v, base.numpy(), path.numpy())
