"""GEMM micro-kernel of model/linear.py and model/attention.py: a few rows against blocks of 16 packed outputs.

Each output is one sum in one order: with float weights over k = 0..K-1, one fused multiply-add a step; with integer weights
an exact sum. Its bits depend neither on the other rows of the tile nor on the blocks beside it.
"""

from __future__ import annotations

from foredraft.kernels.core.backend import HAS_NUMBA, has_cpu_feature, intrinsic, njit
from foredraft.kernels.core.gemm_tile import AVX2, AVX512, LANES, PLAIN
from foredraft.kernels.core.tile_library import BLOCKS, TABLE, publish, table_index

PAIRS = AVX512 if has_cpu_feature("avx512bw") else AVX2 if has_cpu_feature("avx2") else PLAIN
# 16 floats fill one of AVX-512's 32 vector registers, or two of AVX2's 16. This many rows leave registers for the weights.
WIDE = PAIRS is AVX512
ROW_TILE = PAIRS.rows
# Up to this many rows, a tile takes two blocks. With AVX2 two rows already read one block at memory speed, and three rows
# against two blocks spill registers.
PAIR_ROWS = 1 << 30 if WIDE else 1


if HAS_NUMBA:
    # machine code that is called through it must stay alive
    _tiles = publish(PAIRS)


@intrinsic
def _tile(typingctx, rows, blocks, x, x_stride, weight, w, w_stride, K, out, out_stride):
    """Rows x blocks of 16 outputs, with blocks 1, 2 or 4. Strides count elements; `weight` is passed for its dtype."""
    from llvmlite import ir
    from numba import types
    from numba.core.cgutils import add_global_variable

    storage = [types.float32, types.uint16, types.int8, types.uint8].index(weight.dtype)
    signature = types.void(*[types.int64] * 4, weight, *[types.int64] * 5)

    def codegen(context, builder, _signature, args):
        rows, blocks, x, x_stride, _, *others = args
        integer = ir.IntType(64)
        table = builder.module.globals.get(TABLE) or add_global_variable(builder.module, integer, TABLE)
        at = builder.add(builder.mul(rows, ir.Constant(integer, len(BLOCKS))), builder.lshr(blocks, ir.Constant(integer, 1)))
        at = builder.add(at, ir.Constant(integer, table_index(storage, 0, BLOCKS[0])))
        kind = ir.FunctionType(ir.VoidType(), [integer] * 7)
        tile = builder.inttoptr(builder.load(builder.gep(table, [at])), kind.as_pointer())
        builder.call(tile, [x, x_stride, *others])
        return context.get_dummy_value()

    return signature, codegen


def _has_dtype(*names: str):
    """A function of an array: whether its dtype is one of `names`, known when the caller is compiled."""

    @intrinsic
    def has_dtype(typingctx, array):
        from numba import types

        def codegen(context, _builder, signature, _args):
            return context.get_constant(types.boolean, str(signature.args[0].dtype) in names)

        return types.boolean(array), codegen

    return has_dtype


# dtypes of int8 and int4 weights
INTEGERS = ("int8", "uint8")
# whether weights are int8 or int4, and whether they are int4
is_integer, is_int4 = _has_dtype(*INTEGERS), _has_dtype("uint8")


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
            _tile(rows, side, x_at, x_stride, weight, w_at, w_stride, K, out_at, out_stride)
        block += side
