"""Move the cached keys and values of an accepted tree path together, so that slots are decoder positions again.

    k, v   [L, B', H, T, D] float32    slot base + r of sequence b holds query position r (model/attention.py)
    base   [B] int64                   slot of query position 0, -1: the sequence was not read
    path   [B, R] int64                accepted query positions, ascending, then 0: path[b, i] moves to slot base + i
"""

from __future__ import annotations

from foredraft.kernels.core.backend import HAS_NUMBA, njit
from foredraft.kernels.core.rows import copy_row


def compact_reference(k, v, base, path) -> None:
    for b, positions in enumerate(path):
        for i, r in enumerate(positions):
            if base[b] >= 0 and r > 0:
                for cache in (k, v):
                    cache[:, b, :, base[b] + i] = cache[:, b, :, base[b] + r].copy()


@njit()
def _compact_loop(k, v, base, path):
    # in ascending order, so that no slot is overwritten before it was moved
    for b in range(path.shape[0]):
        if base[b] < 0:
            continue
        for i in range(1, path.shape[1]):
            source, to = base[b] + path[b, i], base[b] + i
            if path[b, i] <= i:
                if path[b, i] == 0:
                    break
                continue
            for layer in range(k.shape[0]):
                for h in range(k.shape[2]):
                    copy_row(k[layer, b, h, source], k[layer, b, h, to])
                    copy_row(v[layer, b, h, source], v[layer, b, h, to])


def compact_numba(k, v, base, path) -> None:
    _compact_loop(k, v, base, path)


COMPACT = {"reference": compact_reference, "numba": compact_numba}
BACKEND = "numba" if HAS_NUMBA else "reference"
