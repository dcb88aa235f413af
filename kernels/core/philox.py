"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011), the same on every backend.

    uniform(seed, stream, position, offset) -> float64 in (0, 1), 53 bits; seed any int64, the rest int64 >= 0
    (their low 32 bits count)

Streams keep draws apart that must be independent: a draft and the coin that accepts it never share noise.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import jit, njit, tl

POINT, DRAFT, ACCEPT, RESIDUAL = range(4)

_MASK = 0xFFFFFFFF


def philox_reference(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Ten rounds on 32-bit words."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & _MASK, (a >> 32) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def uniform_reference(seed: int, stream: int, position: int, offset: int) -> float:
    key = (seed & _MASK, (seed >> 32) & _MASK)
    a, b, _, _ = philox_reference(key, (position & _MASK, stream & _MASK, offset & _MASK, 0))
    return ((a >> 5) * 2**26 + (b >> 6) + 0.5) / 2**53


@njit()
def uniform(seed, stream, position, offset):
    """The compiled twin of uniform_reference."""
    mask = np.uint64(_MASK)
    shift = np.uint64(32)
    k0, k1 = np.uint64(seed) & mask, (np.uint64(seed) >> shift) & mask
    c0, c1 = np.uint64(position) & mask, np.uint64(stream) & mask
    c2, c3 = np.uint64(offset) & mask, np.uint64(0)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> shift) ^ c1 ^ k0, b & mask, (a >> shift) ^ c3 ^ k1, a & mask
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    high, low = np.float64(c0 >> np.uint64(5)), np.float64(c1 >> np.uint64(6))
    return (high * 67108864.0 + low + 0.5) / 9007199254740992.0


@jit
def uniform_tile(seed, stream, position, offset):
    """The same for tiles of int64, in Triton."""
    seed = seed.to(tl.uint64, bitcast=True)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    c0, c1 = position.to(tl.uint64, bitcast=True) & 0xFFFFFFFF, stream.to(tl.uint64, bitcast=True) & 0xFFFFFFFF
    c2 = offset.to(tl.uint64, bitcast=True) & 0xFFFFFFFF
    c3 = c2 & 0
    for _ in tl.static_range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c3 ^ k1, a & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return ((c0 >> 5).to(tl.float64) * 67108864.0 + (c1 >> 6).to(tl.float64) + 0.5) / 9007199254740992.0


def row_seed(seed: int, row: int) -> int:
    """The int64 seed of request `row` under a call's `seed`: one splitmix64 step of each, so that rows differ."""
    value = 0
    for word in (seed, row):
        value = (value + word + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        value ^= value >> 31
    return value - 2**64 if value >= 2**63 else value
