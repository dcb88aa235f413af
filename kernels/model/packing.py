"""Weights [N, K] of linear layers as the compiled kernels read them: blocks of 16 outputs, in four storages.

    [N/16, K, 16]        float32, or bfloat16 bits as uint16 (`pack`); N is padded with zeros
    [N/16, K + 4, 16]    int8 (`quantize_int8`); the last 64 bytes of a block are the float32 scales of its outputs
    [N/16, 9K/16, 16]     int4 as uint8 (`quantize_int4`), with bfloat16 scales, each of 32 inputs of an output

The order within a block is that of kernels/core/gemm_tile.py.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.core.backend import njit
from foredraft.kernels.core.gemm_microkernel import is_int4, is_integer
from foredraft.kernels.core.gemm_tile import GROUP, GROUP_BYTES, LANES

# Rows of 16 bytes at the end of an int8 block that hold the float32 scales of its 16 outputs.
SCALE_ROWS = 4


def pack(weight: np.ndarray) -> np.ndarray:
    """[N, K] float32, or uint16 bits of bfloat16, to [ceil(N / 16), K, 16], padded with zero rows."""
    N, K = weight.shape
    blocks = -(-N // LANES)
    padded = weight
    if N % LANES:
        padded = np.zeros((blocks * LANES, K), weight.dtype)
        padded[:N] = weight
    return np.ascontiguousarray(padded.reshape(blocks, LANES, K).transpose(0, 2, 1))


def unpack(packed: np.ndarray, outputs: int) -> np.ndarray:
    """The inverse of `pack`: [N/16, K, 16] to [N, K] with N = outputs."""
    blocks, K, _ = packed.shape
    return np.ascontiguousarray(packed.transpose(0, 2, 1)).reshape(blocks * LANES, K)[:outputs]


def quantize_int8(weight: np.ndarray) -> np.ndarray:
    """[N, K] float32 to int8 blocks [ceil(N / 16), K + 4, 16]: symmetric, with scale max|w| / 127 for each output.

    ValueError if K is odd.
    """
    N, K = weight.shape
    if K % 2:
        raise ValueError(f"int8 needs an even number of inputs, not {K}")
    blocks = -(-N // LANES)
    scale = np.ones(blocks * LANES, np.float32)
    largest = np.abs(weight).max(1)
    scale[:N] = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    packed = np.empty((blocks, K + SCALE_ROWS, LANES), np.int8)
    pairs, of_output = parts(packed)
    rounded = np.zeros((blocks * LANES, K), np.int8)
    rounded[:N] = np.rint(weight / scale[:N, None])
    pairs[:] = rounded.reshape(blocks, LANES, K // 2, 2)
    of_output[:] = scale.reshape(blocks, LANES)
    return packed


def quantize_int4(weight: np.ndarray) -> np.ndarray:
    """[N, K] float32 to int4 blocks [ceil(N / 16), 9K / 16, 16] uint8, with a bfloat16 scale for 32 inputs of an output.

    The weight of a group that is largest in magnitude becomes -8 or 7, whichever leaves the smaller squared error in the
    group. ValueError if K is no multiple of 32.
    """
    N, K = weight.shape
    if K % GROUP:
        raise ValueError(f"int4 needs a multiple of {GROUP} inputs, not {K}")
    blocks, groups = -(-N // LANES), K // GROUP
    padded = np.zeros((blocks * LANES, K), np.float32)
    padded[:N] = weight
    values = padded.reshape(blocks, LANES, groups, GROUP)
    largest = np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)
    found, error = np.zeros(values.shape, np.int8), np.full(largest.shape, np.inf, np.float32)
    scales = np.zeros(largest.shape, np.uint16)
    for divisor in (-8, 7):
        bits = _bfloat16(largest / np.float32(divisor))
        scale = (bits.astype(np.uint32) << 16).view(np.float32)
        levels = np.clip(np.rint(values / np.where(scale == 0, np.float32(1), scale)), -8, 7)
        distance = np.square(levels * scale - values).sum(-1, keepdims=True)
        better = distance < error
        found, error = np.where(better, levels, found).astype(np.int8), np.where(better, distance, error)
        scales = np.where(better, bits, scales)
    packed = np.empty((blocks, groups * GROUP_BYTES // LANES, LANES), np.uint8)
    words, of_group = parts(packed)
    # an output's weights: [groups, 4 quarters of 8, 4 pairs, 2]
    nibbles = (found & 15).astype(np.uint16).reshape(blocks, LANES, groups, 4, 4, 2)
    words[:] = nibbles[..., 0, :] | nibbles[..., 1, :] << 4 | nibbles[..., 2, :] << 8 | nibbles[..., 3, :] << 12
    of_group[:] = scales[..., 0]
    return packed


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def parts(packed: np.ndarray) -> list[np.ndarray]:
    """Views [blocks, 16, ...] of a matrix by output: its weights, then the scales if it is quantised."""
    blocks = len(packed)
    if packed.dtype == np.int8:
        K = packed.shape[1] - SCALE_ROWS
        return [packed[:, :K].reshape(blocks, K // 2, LANES, 2).transpose(0, 2, 1, 3),
                packed[:, K:].reshape(blocks, -1).view(np.float32)]
    if packed.dtype == np.uint8:
        groups = packed.reshape(blocks, -1, GROUP_BYTES)
        words, scales = groups[..., :-2 * LANES].view(np.uint16), groups[..., -2 * LANES :].view(np.uint16)
        return [words.reshape(blocks, -1, 4, LANES, 2).transpose(0, 3, 1, 2, 4), scales.transpose(0, 2, 1)]
    return [packed.transpose(0, 2, 1)]


def take_outputs(packed: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Outputs [n] of a matrix as a matrix of the same storage, with ceil(n / 16) blocks."""
    taken = np.zeros((-(-len(outputs) // LANES), *packed.shape[1:]), packed.dtype)
    at = np.arange(len(outputs))
    for source, target in zip(parts(packed), parts(taken), strict=True):
        target[at // LANES, at % LANES] = source[outputs // LANES, outputs % LANES]
    return taken


def integers(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers [16 blocks, K] and float32 scales [16 blocks, K / inputs of a scale] of quantised weights."""
    found, scales = parts(packed)
    if packed.dtype == np.uint8:
        nibbles = found[..., None, :] >> np.array([0, 4, 8, 12], np.uint16)[:, None] & 15
        found = (nibbles ^ 8).astype(np.int8) - 8
        scales = (scales.astype(np.uint32) << 16).view(np.float32)
    outputs = len(packed) * LANES
    return np.ascontiguousarray(found).reshape(outputs, -1).astype(np.int8), scales.reshape(outputs, -1)


def widen(packed: np.ndarray) -> np.ndarray:
    """The float32 values [N/16, K, 16] of packed or quantised weights; float32 is returned unchanged."""
    if packed.dtype == np.uint16:
        return (packed.astype(np.uint32) << 16).view(np.float32)
    if packed.dtype == np.float32:
        return packed
    values, scales = integers(packed)
    return pack((values.reshape(*scales.shape, -1) * scales[..., None]).reshape(values.shape))


@njit()
def inputs_of(packed):
    """K of packed or quantised weights [..., N/16, rows, 16]."""
    rows = packed.shape[-2]
    if is_int4(packed):
        return rows * LANES // GROUP_BYTES * GROUP
    return rows - SCALE_ROWS if is_integer(packed) else rows
