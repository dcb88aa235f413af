"""GEMM micro-kernel of model/linear.py and model/attention.py: a few rows against blocks of 16 packed outputs.

Each output is one sum in one order: with float weights over k = 0..K-1, one fused multiply-add a step; with integer weights
an exact sum. Its bits depend neither on the other rows of the tile nor on the blocks beside it.
"""

from __future__ import annotations

from foredraft.kernels.core.backend import has_cpu_feature, intrinsic, njit
from foredraft.kernels.core.gemm_tile import AVX2, AVX512, LANES, PLAIN, Tile

PAIRS = AVX512 if has_cpu_feature("avx512bw") else AVX2 if has_cpu_feature("avx2") else PLAIN
# 16 floats fill one of AVX-512's 32 vector registers, or two of AVX2's 16. This many rows leave registers for the weights.
WIDE = PAIRS is AVX512
ROW_TILE = PAIRS.rows
# Up to this many rows, a tile takes two blocks. With AVX2 two rows already read one block at memory speed, and three rows
# against two blocks spill registers.
PAIR_ROWS = 1 << 30 if WIDE else 1


def _make_tile(M: int, R: int):
    """M rows x R blocks of 16 outputs: (x address, x stride, weight, address, block stride, K, out address, out stride).

    Strides count elements; `weight` is passed for its dtype: float32, uint16 (bfloat16), int8, uint8 (int4).
    """

    @intrinsic
    def tile(typingctx, x, x_stride, weight, w, w_stride, K, out, out_stride):
        from numba import types

        storage = {types.float32: "float32", types.uint16: "bfloat16", types.int8: "int8", types.uint8: "int4"}[weight.dtype]
        signature = types.void(*[types.int64] * 2, weight, *[types.int64] * 5)

        def codegen(context, builder, _signature, args):
            Tile(builder, storage, M, R, PAIRS).emit(*args[:2], *args[3:])
            return context.get_dummy_value()

        return signature, codegen

    return tile


@intrinsic
def is_integer(typingctx, weight):
    """Whether weights are int8 or int4, known when the caller is compiled."""
    from numba import types

    def codegen(context, builder, signature, _args):
        return context.get_constant(types.boolean, signature.args[0].dtype in (types.int8, types.uint8))

    return types.boolean(weight), codegen


@intrinsic
def is_int4(typingctx, weight):
    """Whether weights are int4, known when the caller is compiled."""
    from numba import types

    def codegen(context, builder, signature, _args):
        return context.get_constant(types.boolean, signature.args[0].dtype == types.uint8)

    return types.boolean(weight), codegen


_tile_1x4 = _make_tile(1, 4)
_tile_1x2, _tile_2x2, _tile_3x2, _tile_4x2 = (_make_tile(m, 2) for m in (1, 2, 3, 4))
_tile_5x2, _tile_6x2, _tile_7x2, _tile_8x2 = (_make_tile(m, 2) for m in (5, 6, 7, 8))
_tile_1x1, _tile_2x1, _tile_3x1, _tile_4x1 = (_make_tile(m, 1) for m in (1, 2, 3, 4))
_tile_5x1, _tile_6x1, _tile_7x1, _tile_8x1 = (_make_tile(m, 1) for m in (5, 6, 7, 8))


@njit()
def _tile_single(x, x_stride, weight, w, w_stride, K, out, out_stride, M):
    if M == 1:
        _tile_1x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 2:
        _tile_2x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 3:
        _tile_3x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 4:
        _tile_4x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 5:
        _tile_5x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 6:
        _tile_6x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 7:
        _tile_7x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 8:
        _tile_8x1(x, x_stride, weight, w, w_stride, K, out, out_stride)


@njit()
def _tile_pair(x, x_stride, weight, w, w_stride, K, out, out_stride, M):
    if M == 1:
        _tile_1x2(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 2:
        _tile_2x2(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 3:
        _tile_3x2(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 4:
        _tile_4x2(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 5:
        _tile_5x2(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 6:
        _tile_6x2(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 7:
        _tile_7x2(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 8:
        _tile_8x2(x, x_stride, weight, w, w_stride, K, out, out_stride)


@njit()
def gemm_blocks(x, x_stride, weight, w, w_stride, K, out, out_stride, M, blocks):
    """M rows against `blocks` blocks of 16 outputs, by addresses and element strides; `weight` is passed for its dtype.

    Rows are split evenly over as few tiles as possible. x are float32; with integer weights they are the levels of
    model/levels.py, and their stride is that of a tile. A tile takes up to 4 blocks, to keep enough sums in flight.
    """
    tiles = (M + ROW_TILE - 1) // ROW_TILE
    # with AVX2, the sums and the unpacked weights of one block of int4 fill the registers
    is_narrow = is_int4(weight) and PAIRS.lanes < LANES
    block = 0
    while block < blocks:
        side = 1
        if M == 1 and blocks - block >= 4 and not is_narrow:
            side = 4
        elif M <= PAIR_ROWS and blocks - block >= 2 and not is_narrow:
            side = 2
        w_at = w + block * w_stride * weight.itemsize
        for tile in range(tiles):
            row = M * tile // tiles
            rows = M * (tile + 1) // tiles - row
            x_at = x + (tile * x_stride * 2 if is_integer(weight) else row * x_stride * 4)
            out_at = out + (row * out_stride + block * LANES) * 4
            if side == 4:
                _tile_1x4(x_at, x_stride, weight, w_at, w_stride, K, out_at, out_stride)
            elif side == 2:
                _tile_pair(x_at, x_stride, weight, w_at, w_stride, K, out_at, out_stride, rows)
            else:
                _tile_single(x_at, x_stride, weight, w_at, w_stride, K, out_at, out_stride, rows)
        block += side
