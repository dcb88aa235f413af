"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011), the same bits on every backend.

    uniform(seed, stream, position, offset) -> float64 in (0, 1), 53 bits
    seed any int64; the rest int64 >= 0, of which the low 32 bits count

Draws that must be independent use different streams: POINT (the target's token when drafts are point masses), DRAFT (a
drafted token), ACCEPT (the acceptance test of a drafted token), RESIDUAL (the token that replaces a rejected one), BEAM (the
choice among the continuations of beams).
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit

POINT, DRAFT, ACCEPT, RESIDUAL, BEAM = range(5)

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
    """uniform_reference for use inside compiled kernels."""
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


def request_seed(seed: int, request: int) -> int:
    """The int64 seed of a request under a call's `seed`: one splitmix64 step of each, so that requests differ."""
    value = 0
    for word in (seed, request):
        value = (value + word + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        value ^= value >> 31
    return value - 2**64 if value >= 2**63 else value
