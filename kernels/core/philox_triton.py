"""philox.py in Triton."""

from __future__ import annotations

from foredraft.kernels.core.backend_triton import jit, tl


@jit
def uniform_triton(seed, stream, position, offset):
    """philox.uniform of int64 tensors of one shape."""
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
