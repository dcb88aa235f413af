"""GEMM micro-kernel of model/linear.py and model/attention.py: a few rows against blocks of 16 packed outputs.

Each output is one sum over k = 0..K-1 in order, one fused multiply-add a step. Its bits depend neither on the other rows of
the tile nor on the blocks beside it.
"""

from __future__ import annotations

from foredraft.kernels.core.backend import has_cpu_feature, intrinsic, njit

LANES = 16
# 16 floats fill one of AVX-512's 32 vector registers, or two of AVX2's 16. This many rows leave registers for the weights.
WIDE = has_cpu_feature("avx512f")
ROW_TILE = 8 if WIDE else 6
# Software prefetch distance in bytes: the hardware prefetcher stops at each 4 kB page.
PREFETCH = 2048
# Up to this many rows, a tile takes two blocks. With AVX2 two rows already read one block at memory speed, and three rows
# against two blocks spill registers.
PAIR_ROWS = 1 << 30 if WIDE else 1


def _make_tile(M: int, R: int):
    """M rows x R blocks of 16 outputs: (x address, x stride, weight, address, block stride, K, out address, out stride).

    Strides count elements; `weight` is passed for its dtype. It is written as LLVM IR, since numba would spill array
    accumulators to the stack.
    """

    @intrinsic
    def tile(typingctx, x, x_stride, weight, w, w_stride, K, out, out_stride):
        from llvmlite import ir
        from numba import types
        from numba.core.cgutils import get_or_insert_function

        bits = {types.float32: 32, types.uint16: 16, types.int8: 8}[weight.dtype]
        signature = types.void(*[types.int64] * 2, weight, *[types.int64] * 5)

        def codegen(context, builder, _signature, args):
            x_at, x_step, _, w_at, w_step, count, out_at, out_step = args
            i64, i32, f32 = ir.IntType(64), ir.IntType(32), ir.FloatType()
            vector, wide = ir.VectorType(f32, LANES), ir.VectorType(i32, LANES)
            element = vector if bits == 32 else ir.VectorType(ir.IntType(bits), LANES)
            size = bits // 8

            def pointer(base, step, index, scale, kind):
                offset = builder.mul(step, ir.Constant(i64, index * scale))
                return builder.inttoptr(builder.add(base, offset), kind.as_pointer())

            fma = get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{LANES}f32")
            byte = ir.IntType(8).as_pointer()
            # (address, 0: to read, 3: keep in all caches, 1: data)
            fetch = get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]), "llvm.prefetch.p0i8")
            x_rows = [pointer(x_at, x_step, m, 4, f32) for m in range(M)]
            blocks = [pointer(w_at, w_step, r, size, element) for r in range(R)]
            entry = builder.block
            loop = builder.append_basic_block("k")
            done = builder.append_basic_block("done")
            builder.branch(loop)

            builder.position_at_end(loop)
            k = builder.phi(i64)
            sums = [[builder.phi(vector) for _ in range(R)] for _ in range(M)]
            loaded = []
            for r in range(R):
                address = builder.gep(blocks[r], [k], inbounds=True)
                ahead = builder.gep(builder.bitcast(address, byte), [ir.Constant(i64, PREFETCH)])
                builder.call(fetch, [ahead, *(ir.Constant(i32, n) for n in (0, 3, 1))])
                value = builder.load(address, align=size)
                if bits == 8:
                    value = builder.sitofp(builder.sext(value, wide), vector)
                elif bits == 16:
                    value = builder.shl(builder.zext(value, wide), ir.Constant(wide, [16] * LANES))
                    value = builder.bitcast(value, vector)
                loaded.append(value)
            nothing = ir.Constant(vector, ir.Undefined)
            spread_lane = ir.Constant(wide, [0] * LANES)
            results = []
            for m in range(M):
                scalar = builder.load(builder.gep(x_rows[m], [k]), align=4)
                spread = builder.shuffle_vector(
                    builder.insert_element(nothing, scalar, ir.Constant(i32, 0)), nothing, spread_lane)
                results.append([builder.call(fma, [spread, loaded[r], sums[m][r]]) for r in range(R)])
            following = builder.add(k, ir.Constant(i64, 1))
            k.add_incoming(ir.Constant(i64, 0), entry)
            k.add_incoming(following, loop)
            for m in range(M):
                for r in range(R):
                    sums[m][r].add_incoming(ir.Constant(vector, [0.0] * LANES), entry)
                    sums[m][r].add_incoming(results[m][r], loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, done)

            builder.position_at_end(done)
            for r in range(R):
                if bits == 8:
                    at = builder.bitcast(builder.gep(blocks[r], [count]), vector.as_pointer())
                    scale = builder.load(at, align=1)
                for m in range(M):
                    result = builder.fmul(results[m][r], scale) if bits == 8 else results[m][r]
                    row = builder.add(out_at, builder.mul(out_step, ir.Constant(i64, m * 4)))
                    address = builder.add(row, ir.Constant(i64, r * LANES * 4))
                    builder.store(result, builder.inttoptr(address, vector.as_pointer()), align=4)
            return context.get_dummy_value()

        return signature, codegen

    return tile


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

    Rows are split evenly over as few tiles as possible. A tile takes up to 4 blocks, to keep enough sums in flight.
    """
    tiles = (M + ROW_TILE - 1) // ROW_TILE
    block = 0
    while block < blocks:
        side = 1
        if M == 1 and blocks - block >= 4:
            side = 4
        elif M <= PAIR_ROWS and blocks - block >= 2:
            side = 2
        w_at = w + block * w_stride * weight.itemsize
        for tile in range(tiles):
            row = M * tile // tiles
            rows = M * (tile + 1) // tiles - row
            x_at, out_at = x + row * x_stride * 4, out + (row * out_stride + block * LANES) * 4
            if side == 4:
                _tile_1x4(x_at, x_stride, weight, w_at, w_stride, K, out_at, out_stride)
            elif side == 2:
                _tile_pair(x_at, x_stride, weight, w_at, w_stride, K, out_at, out_stride, rows)
            else:
                _tile_single(x_at, x_stride, weight, w_at, w_stride, K, out_at, out_stride, rows)
        block += side
