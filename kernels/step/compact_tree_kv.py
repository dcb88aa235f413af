"""Move what a cache holds of an accepted tree path together, so that positions are slots again.

    k, v   [L, B', H, T, D] float32    slot base + r of sequence b holds row r (attention.py)
    base   [B] int64                   the slot of row 0, -1: nothing was read
    path   [B, R] int64                the rows walked, ascending, 0 past them: row path[b, i] goes to slot base + i

Ascending, so that no row is overwritten before it was moved.
"""

from __future__ import annotations

from foredraft.kernels.core.backend import HAS_NUMBA, njit


def keep_reference(k, v, base, path) -> None:
    for b, rows in enumerate(path):
        for i, row in enumerate(rows):
            if base[b] >= 0 and row > 0:
                for cache in (k, v):
                    cache[:, b, :, base[b] + i] = cache[:, b, :, base[b] + row].copy()


@njit()
def _keep_loop(k, v, base, path):
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
                    k[layer, b, h, to] = k[layer, b, h, source]
                    v[layer, b, h, to] = v[layer, b, h, source]


def keep_numba(k, v, base, path) -> None:
    _keep_loop(k, v, base, path)


KEEP = {"reference": keep_reference, "numba": keep_numba}
BACKEND = "numba" if HAS_NUMBA else "reference"
