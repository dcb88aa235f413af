"""Skinny linear: a few rows against a big weight that is streamed once.

    x       [M, K] float32    rows of activations
    weight  [N/16, K, 16]     `pack` of an [N, K] matrix: float32, or bfloat16 bits as uint16; N padded with zeros
            [N/16, K + 4, 16] `quantize` of one: int8, and in the last 64 bytes of a block its 16 float32 scales
    out     [M, N] float32    x @ W.T, accumulated in float32

Sixteen outputs are accumulated side by side, each over k = 0..K-1 in order with one fused multiply-add a step, so a
row's bits depend neither on how many rows share the pass nor on the batch: speculative greedy equals plain greedy.
`linear_argmax` returns the index of each row's largest output (the lowest one on ties) and never writes the outputs.
"""

from __future__ import annotations

import numpy as np

from foredraft.kernels.backend import HAS_NUMBA, get_num_threads, intrinsic, njit, prange

LANES = 16
# int8 "rows" at the end of a block that hold the float32 scales of its 16 outputs.
SCALE_ROWS = 4
# Rows held in registers at once: 6 rows x 16 lanes are 12 of AVX2's 16 vector registers.
ROW_TILE = 6
# Outputs whose scores stay in the first-level cache while their maximum is looked for.
ARGMAX_BLOCKS = 32
# Below this many multiply-adds one thread does it all: a second one must be woken and waited for, and on a busy machine that
# costs a time slice.
THREAD_WORK = 1_000_000


def pack(weight: np.ndarray) -> np.ndarray:
    """[N, K] float32, or uint16 bits of bfloat16, to [ceil(N / 16), K, 16], zero rows added at the end."""
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


def quantize(weight: np.ndarray) -> np.ndarray:
    """[N, K] float32 to int8 blocks [ceil(N / 16), K + 4, 16]: symmetric, a scale of max|w| / 127 for each output."""
    N, K = weight.shape
    blocks = -(-N // LANES)
    scale = np.ones(blocks * LANES, np.float32)
    largest = np.abs(weight).max(1)
    scale[:N] = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    packed = np.empty((blocks, K + SCALE_ROWS, LANES), np.int8)
    packed[:, :K] = pack(np.rint(weight / scale[:N, None]).astype(np.int8))
    packed[:, K:] = scale.view(np.int8).reshape(blocks, SCALE_ROWS, LANES)
    return packed


def widen(packed: np.ndarray) -> np.ndarray:
    """The float32 that packed weights stand for; float32 is returned as it is."""
    if packed.dtype == np.uint16:
        return (packed.astype(np.uint32) << 16).view(np.float32)
    if packed.dtype == np.int8:
        scale = np.ascontiguousarray(packed[:, -SCALE_ROWS:]).reshape(len(packed), -1).view(np.float32)
        return packed[:, :-SCALE_ROWS] * scale[:, None]
    return packed


@njit()
def inputs_of(packed):
    """K of packed or quantised weights [..., N/16, rows, 16]."""
    return packed.shape[-2] - (SCALE_ROWS if packed.itemsize == 1 else 0)


def linear_reference(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    W = unpack(widen(weight), outputs).astype(np.float64)
    return np.array([[sum(float(a) * float(b) for a, b in zip(row, w, strict=True)) for w in W] for row in x], np.float32)


def linear_argmax_reference(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    return np.array([int(np.argmax(row)) for row in linear_reference(x, weight, outputs)], np.int64)


def _make_tile(M: int, R: int):
    """M rows x R blocks of 16 outputs: (x address, x stride, weight, address, block stride, K, out address, out stride).

    Strides count elements; `weight` is passed for its dtype. Written as LLVM IR because numba spills array
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
                value = builder.load(builder.gep(blocks[r], [k], inbounds=True), align=size)
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
                    place = builder.add(row, ir.Constant(i64, r * LANES * 4))
                    builder.store(result, builder.inttoptr(place, vector.as_pointer()), align=4)
            return context.get_dummy_value()

        return signature, codegen

    return tile


_tile_1x4, _tile_1x2, _tile_2x2, _tile_3x2 = _make_tile(1, 4), _make_tile(1, 2), _make_tile(2, 2), _make_tile(3, 2)
_tile_1x1, _tile_2x1, _tile_3x1 = _make_tile(1, 1), _make_tile(2, 1), _make_tile(3, 1)
_tile_4x1, _tile_5x1, _tile_6x1 = _make_tile(4, 1), _make_tile(5, 1), _make_tile(6, 1)


@njit()
def _tile_rows(x, x_stride, weight, w, w_stride, K, out, out_stride, M, R):
    """One register tile for a run-time row count; R blocks side by side keep enough sums in flight when M is small."""
    if R == 4:
        _tile_1x4(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif R == 2 and M == 1:
        _tile_1x2(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif R == 2 and M == 2:
        _tile_2x2(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif R == 2:
        _tile_3x2(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 1:
        _tile_1x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 2:
        _tile_2x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 3:
        _tile_3x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 4:
        _tile_4x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    elif M == 5:
        _tile_5x1(x, x_stride, weight, w, w_stride, K, out, out_stride)
    else:
        _tile_6x1(x, x_stride, weight, w, w_stride, K, out, out_stride)


@njit()
def tile_blocks(x, x_stride, weight, w, w_stride, K, out, out_stride, M, blocks):
    """M rows against `blocks` blocks of 16 outputs, by addresses and element strides; `weight` is passed for its dtype."""
    block = 0
    while block < blocks:
        side = 1
        if M == 1 and blocks - block >= 4:
            side = 4
        elif M <= 3 and blocks - block >= 2:
            side = 2
        w_at = w + block * w_stride * weight.itemsize
        row = 0
        while row < M:
            rows = min(ROW_TILE, M - row)
            out_at = out + (row * out_stride + block * LANES) * 4
            _tile_rows(x + row * x_stride * 4, x_stride, weight, w_at, w_stride, K, out_at, out_stride, rows, side)
            row += rows
        block += side


@njit()
def _span(x, weight, first, last, out, out_offset):
    """out[:, out_offset + 16 i :][:16] = x @ block (first + i), for blocks first..last-1; out has room for all 16."""
    M, K = x.shape
    w_stride = weight.shape[1] * LANES
    w_at = weight.ctypes.data + first * w_stride * weight.itemsize
    tile_blocks(x.ctypes.data, x.strides[0] // 4, weight, w_at, w_stride, K, out.ctypes.data + out_offset * 4,
                out.strides[0] // 4, M, last - first)


@njit()
def _linear_serial(x, weight, out, first, last):
    N = out.shape[1]
    whole = min(last, N // LANES)
    if whole > first:
        _span(x, weight, first, whole, out, first * LANES)
    if last > whole:
        ragged = np.empty((x.shape[0], LANES), np.float32)
        _span(x, weight, whole, whole + 1, ragged, 0)
        out[:, whole * LANES :] = ragged[:, : N - whole * LANES]


@njit(parallel=True)
def _linear_threads(x, weight, out, threads):
    blocks = weight.shape[0]
    for thread in prange(threads):
        _linear_serial(x, weight, out, blocks * thread // threads, blocks * (thread + 1) // threads)


@njit()
def linear_loop(x, weight, out, threads):
    """Compiled linear for use inside other kernels; every thread streams its own contiguous run of blocks."""
    if threads == 1 or x.shape[0] * x.shape[1] * out.shape[1] < THREAD_WORK:
        _linear_serial(x, weight, out, 0, weight.shape[0])
    else:
        _linear_threads(x, weight, out, threads)


@njit(fastmath={"nnan", "nsz", "reassoc"})
def _largest(values):
    best = values[0]
    for value in values:
        best = max(best, value)
    return best


@njit()
def _argmax_serial(x, weight, outputs, first, last, best, best_at):
    M = x.shape[0]
    scores = np.empty((M, ARGMAX_BLOCKS * LANES), np.float32)
    for start in range(first, last, ARGMAX_BLOCKS):
        stop = min(start + ARGMAX_BLOCKS, last)
        _span(x, weight, start, stop, scores, 0)
        width = min(stop * LANES, outputs) - start * LANES
        for m in range(M):
            top = _largest(scores[m, :width])
            if top > best[m]:
                best[m] = top
                at = 0
                while scores[m, at] != top:
                    at += 1
                best_at[m] = start * LANES + at


@njit(parallel=True)
def _argmax_threads(x, weight, outputs, best, best_at, threads):
    blocks = weight.shape[0]
    for thread in prange(threads):
        _argmax_serial(x, weight, outputs, blocks * thread // threads, blocks * (thread + 1) // threads,
                       best[thread], best_at[thread])


@njit()
def linear_argmax_loop(x, weight, outputs, out, threads):
    M = x.shape[0]
    best = np.full((threads, M), -np.inf, np.float32)
    best_at = np.zeros((threads, M), np.int64)
    if threads == 1 or M * x.shape[1] * outputs < THREAD_WORK:
        _argmax_serial(x, weight, outputs, 0, weight.shape[0], best[0], best_at[0])
    else:
        _argmax_threads(x, weight, outputs, best, best_at, threads)
    for m in range(M):
        winner = 0
        for thread in range(1, threads):
            if best[thread, m] > best[winner, m]:
                winner = thread
        out[m] = best_at[winner, m]


def linear_numba(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    out = np.empty((x.shape[0], outputs), np.float32)
    linear_loop(x, weight, out, get_num_threads())
    return out


def linear_argmax_numba(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    out = np.empty(x.shape[0], np.int64)
    linear_argmax_loop(x, weight, outputs, out, get_num_threads())
    return out


LINEAR = {"reference": linear_reference, "numba": linear_numba}
LINEAR_ARGMAX = {"reference": linear_argmax_reference, "numba": linear_argmax_numba}


def linear(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    """out [M, N] float32 by the fastest implementation present."""
    return LINEAR["numba" if HAS_NUMBA else "reference"](x, weight, outputs)


def linear_argmax(x: np.ndarray, weight: np.ndarray, outputs: int) -> np.ndarray:
    """[M] int64: the index of each row's largest output, by the fastest implementation present."""
    return LINEAR_ARGMAX["numba" if HAS_NUMBA else "reference"](x, weight, outputs)
