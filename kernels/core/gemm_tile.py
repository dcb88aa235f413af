"""The LLVM IR of gemm_microkernel.py: a tile of a few rows against blocks of 16 outputs, for each storage of the weights.

A block holds the weights of 16 outputs:

    float32, bfloat16    [K, 16]                 x [M, K] float32; out = x @ W.T
    int8                 [K/2, 16, 2] int8, then 16 float32 scales
    int4                 K/32 groups, each of [4, 16, 2] uint16, then 16 bfloat16 scales; a uint16 holds the weights of
                         inputs k, k + 2, k + 4 and k + 6, lowest bits first

For int8 and int4, x are int16 levels (model/levels.py): [K/2, rows, 2], then a float32 scale of each row, where `rows` is
the most that a tile takes. Products of two inputs are added as 32-bit integers (`pmaddwd`, with VNNI `vpdpwssd`), which is
exact: levels are so small that no sum overflows.

It is LLVM IR since numba would spill array accumulators to the stack.
"""

from __future__ import annotations

from typing import Any, NamedTuple

LANES = 16
STORAGES = ("float32", "bfloat16", "int8", "int4")
# Inputs that share a scale of int4, and the bytes of such a group: 32 x 16 weights and 16 scales.
GROUP, GROUP_BYTES = 32, 288
# Software prefetch distance in bytes: the hardware prefetcher stops at each 4 kB page.
PREFETCH = 2048


class Pairs(NamedTuple):
    """How a processor adds products of pairs of int16: an LLVM intrinsic for `lanes` sums; None: plain arithmetic.

    rows: the most rows of a tile, so that its sums stay in registers.
    """

    lanes: int
    intrinsic: str | None
    rows: int


PLAIN = Pairs(8, None, 6)
AVX2 = Pairs(8, "llvm.x86.avx2.pmadd.wd", 6)
AVX512 = Pairs(16, "llvm.x86.avx512.pmaddw.d.512", 8)


class Tile:
    """Emits one tile: M rows x R blocks. `args` are 64-bit integers: addresses in bytes, strides in elements."""

    def __init__(self, builder: Any, storage: str, M: int, R: int, pairs: Pairs):
        from llvmlite import ir

        self.ir, self.b, self.storage, self.M, self.R, self.pairs = ir, builder, storage, M, R, pairs
        self.i8, self.i16, self.i32, self.i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
        self.f32 = ir.FloatType()
        self.floats = ir.VectorType(self.f32, LANES)

    def emit(self, x, x_stride, w, w_stride, count, out, out_stride) -> None:
        size = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 1}[self.storage]
        self.x, self.x_stride = x, x_stride
        self.blocks = [self.address(w, w_stride, r * size) for r in range(self.R)]
        results = {"int8": self.int8, "int4": self.int4}.get(self.storage, self.floating)(count)
        for m in range(self.M):
            row = self.address(out, out_stride, m * 4)
            for r in range(self.R):
                self.b.store(results[m][r], self.pointer(row, r * LANES * 4, self.floats), align=4)

    # --- parts ---

    def address(self, base, step, scale: int):
        return self.b.add(base, self.b.mul(step, self.ir.Constant(self.i64, scale)))

    def pointer(self, address, offset, kind):
        if isinstance(offset, int):
            offset = self.ir.Constant(self.i64, offset)
        return self.b.inttoptr(self.b.add(address, offset), kind.as_pointer())

    def call(self, name: str, result, *values):
        from numba.core.cgutils import get_or_insert_function

        kind = self.ir.FunctionType(result, [value.type for value in values])
        return self.b.call(get_or_insert_function(self.b.module, kind, name), values)

    def fetch(self, starts: list, offset) -> list:
        """The addresses at a byte offset from each start; what follows them is prefetched."""
        addresses = [self.b.add(start, offset) for start in starts]
        for address in addresses:
            ahead = self.pointer(address, PREFETCH, self.i8)
            # (address, 0: to read, 3: keep in all caches, 1: data)
            self.call("llvm.prefetch.p0i8", self.ir.VoidType(), ahead, *(self.ir.Constant(self.i32, n) for n in (0, 3, 1)))
        return addresses

    def spread(self, scalar, lanes: int):
        """A vector with `scalar` in all lanes."""
        ir = self.ir
        nothing = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
        zeros = ir.Constant(ir.VectorType(self.i32, lanes), [0] * lanes)
        return self.b.shuffle_vector(self.b.insert_element(nothing, scalar, ir.Constant(self.i32, 0)), nothing, zeros)

    def splat(self, kind, value):
        return self.ir.Constant(kind, [value] * kind.count)

    def loop(self, count, step: int, sums: list, body):
        """`body(k, sums)` for k = 0, step, .. below count > 0; returns the sums it returned last."""
        b, before = self.b, self.b.block
        again, done = b.append_basic_block("again"), b.append_basic_block("done")
        b.branch(again)
        b.position_at_end(again)
        k = b.phi(self.i64)
        carried = [b.phi(value.type) for value in sums]
        found = body(k, carried)
        following = b.add(k, self.ir.Constant(self.i64, step))
        last = b.block
        starts = [self.ir.Constant(self.i64, 0), *sums]
        for phi, first, later in zip([k, *carried], starts, [following, *found], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, last)
        b.cbranch(b.icmp_signed("<", following, count), again, done)
        b.position_at_end(done)
        return found

    # --- float32 and bfloat16: one fused multiply-add for each input ---

    def floating(self, count):
        b, half = self.b, self.storage == "bfloat16"
        wide = self.ir.VectorType(self.i32, LANES)
        element = self.ir.VectorType(self.i16, LANES) if half else self.floats
        bytes_of = LANES * (2 if half else 4)
        rows = [self.address(self.x, self.x_stride, m * 4) for m in range(self.M)]

        def body(k, sums):
            weights = []
            for address in self.fetch(self.blocks, b.mul(k, self.ir.Constant(self.i64, bytes_of))):
                value = b.load(self.pointer(address, 0, element), align=2 if half else 4)
                if half:
                    value = b.bitcast(b.shl(b.zext(value, wide), self.splat(wide, 16)), self.floats)
                weights.append(value)
            found = []
            for m in range(self.M):
                x = self.spread(b.load(self.pointer(rows[m], b.mul(k, self.ir.Constant(self.i64, 4)), self.f32),
                                       align=4), LANES)
                found += [self.call(f"llvm.fma.v{LANES}f32", self.floats, x, weights[r], sums[m * self.R + r])
                          for r in range(self.R)]
            return found

        sums = self.loop(count, 1, [self.splat(self.floats, 0.0)] * (self.M * self.R), body)
        return [sums[m * self.R : (m + 1) * self.R] for m in range(self.M)]

    # --- int8 and int4: two inputs at once ---

    @property
    def parts(self) -> int:
        """Vectors of sums of a block."""
        return LANES // self.pairs.lanes

    def products(self, weights, x):
        """[lanes] int32: w0 x0 + w1 x1 of [2 lanes] int16."""
        b, lanes = self.b, self.pairs.lanes
        sums = self.ir.VectorType(self.i32, lanes)
        if self.pairs.intrinsic is not None:
            return self.call(self.pairs.intrinsic, sums, weights, x)
        wide = self.ir.VectorType(self.i32, 2 * lanes)
        both = b.mul(b.sext(weights, wide), b.sext(x, wide))
        halves = [b.shuffle_vector(both, both, self.ir.Constant(sums, list(range(first, 2 * lanes, 2)))) for first in (0, 1)]
        return b.add(*halves)

    def levels(self, inputs):
        """The address of the levels of `inputs`, an even number of inputs, and what follows them."""
        return self.address(self.x, inputs, 2 * self.pairs.rows)

    def pair_of(self, m: int, levels):
        """Two levels of row m in all lanes."""
        both = self.spread(self.b.load(self.pointer(levels, 4 * m, self.i32), align=2), self.pairs.lanes)
        return self.b.bitcast(both, self.ir.VectorType(self.i16, 2 * self.pairs.lanes))

    def join(self, parts):
        """The sums [16] int32 of a block."""
        if len(parts) == 1:
            return parts[0]
        return self.b.shuffle_vector(*parts, self.ir.Constant(self.ir.VectorType(self.i32, LANES), list(range(LANES))))

    def zeros(self) -> list:
        return [self.splat(self.ir.VectorType(self.i32, self.pairs.lanes), 0)] * (self.M * self.R * self.parts)

    def x_scale(self, m: int, count):
        return self.spread(self.b.load(self.pointer(self.levels(count), 4 * m, self.f32), align=2), LANES)

    def add_products(self, sums: list, weights: list, levels) -> list:
        """sums [M R parts] plus the products of `weights` [R parts] with the two levels of each row at an address."""
        found = []
        for m in range(self.M):
            x = self.pair_of(m, levels)
            found += [self.b.add(sums[m * len(weights) + i], self.products(value, x)) for i, value in enumerate(weights)]
        return found

    def int8(self, count):
        b, lanes = self.b, self.pairs.lanes
        narrow, wide = self.ir.VectorType(self.i8, 2 * lanes), self.ir.VectorType(self.i16, 2 * lanes)

        def body(k, sums):
            addresses = self.fetch(self.blocks, b.mul(k, self.ir.Constant(self.i64, LANES)))
            weights = [b.sext(b.load(self.pointer(address, part * 2 * lanes, narrow), align=1), wide)
                       for address in addresses for part in range(self.parts)]
            return self.add_products(sums, weights, self.levels(k))

        sums = self.loop(count, 2, self.zeros(), body)
        results = []
        scales = [b.load(self.pointer(block, b.mul(count, self.ir.Constant(self.i64, LANES)), self.floats), align=1)
                  for block in self.blocks]
        for m in range(self.M):
            of_row = self.x_scale(m, count)
            results.append([b.fmul(b.fmul(b.sitofp(self.join(self.sums_of(sums, m, r)), self.floats), scales[r]), of_row)
                            for r in range(self.R)])
        return results

    def sums_of(self, sums: list, m: int, r: int) -> list:
        first = (m * self.R + r) * self.parts
        return sums[first : first + self.parts]

    def int4(self, count):
        b, lanes = self.b, self.pairs.lanes
        four = self.ir.VectorType(self.i16, 2 * lanes)
        half, wide = self.ir.VectorType(self.i16, LANES), self.ir.VectorType(self.i32, LANES)
        constant = lambda number: self.ir.Constant(self.i64, number)  # noqa: E731  an LLVM constant
        # bytes of a quarter of a group: 8 inputs of 16 outputs
        quarter = GROUP * LANES // 2 // 4

        def group(k, totals):
            at = b.mul(b.sdiv(k, constant(GROUP)), constant(GROUP_BYTES))
            starts = [b.add(block, at) for block in self.blocks]

            def inner(j, sums):
                addresses = self.fetch(starts, b.mul(j, constant(quarter // 8)))
                packed = [b.load(self.pointer(address, part * 4 * lanes, four), align=2)
                          for address in addresses for part in range(self.parts)]
                levels = self.levels(b.add(k, j))
                for pair in range(4):
                    weights = [b.ashr(b.shl(value, self.splat(four, 12 - 4 * pair)) if pair < 3 else value,
                                      self.splat(four, 12)) for value in packed]
                    sums = self.add_products(sums, weights, b.add(levels, constant(4 * self.pairs.rows * pair)))
                return sums

            sums = self.loop(constant(GROUP), 8, self.zeros(), inner)
            found = []
            scales = []
            for start in starts:
                bits = b.zext(b.load(self.pointer(start, GROUP * LANES // 2, half), align=2), wide)
                scales.append(b.bitcast(b.shl(bits, self.splat(wide, 16)), self.floats))
            for m in range(self.M):
                for r in range(self.R):
                    value = b.sitofp(self.join(self.sums_of(sums, m, r)), self.floats)
                    found.append(self.call(f"llvm.fma.v{LANES}f32", self.floats, value, scales[r], totals[m * self.R + r]))
            return found

        totals = self.loop(count, GROUP, [self.splat(self.floats, 0.0)] * (self.M * self.R), group)
        return [[b.fmul(totals[m * self.R + r], self.x_scale(m, count)) for r in range(self.R)] for m in range(self.M)]
