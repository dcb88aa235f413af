"""The LLVM IR of tiles, compiled for processors that this machine may lack, and run where it can be."""

import ctypes

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from llvmlite import binding, ir

from foredraft.kernels.core.gemm_microkernel import PAIRS
from foredraft.kernels.core.gemm_tile import AVX2, AVX512, LANES, PLAIN, Tile
from foredraft.kernels.model.levels import levels_reference
from foredraft.kernels.model.linear import linear_reference
from foredraft.kernels.model.packing import quantize_int4, quantize_int8

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"


def compiled(storage, M, R, pairs, triple, processor):
    """The module of a function `tile`, and a machine for it."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 7), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    Tile(builder, storage, M, R, pairs).emit(*function.args)
    builder.ret_void()
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    return parsed, binding.Target.from_triple(triple).create_target_machine(processor, opt=3)


def assembly(*arguments):
    module, machine = compiled(*arguments)
    return machine.emit_assembly(module)


@pytest.mark.parametrize("storage", ["int8", "int4"])
@pytest.mark.parametrize("pairs, processor, register, fused", [
    (AVX2, "haswell", "ymm", False), (AVX512, "skylake-avx512", "zmm", False), (AVX512, "icelake-server", "zmm", True),
    (AVX512, "znver4", "zmm", True)])
def test_integer_tiles_use_the_units_of_a_processor(storage, pairs, processor, register, fused):
    found = assembly(storage, 4, 1, pairs, X86, processor)
    assert register in found and (register == "zmm" or "zmm" not in found)
    # LLVM leaves some sums of a long chain unfused
    assert ("vpdpwssd" in found) == fused
    # one multiply for each row, pair of inputs and vector of sums: nothing is computed twice
    multiplies = found.count("vpmaddwd") + found.count("vpdpwssd")
    assert multiplies == 4 * (16 // pairs.lanes) * (1 if storage == "int8" else 4)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("triple, processor", [(ARM, "neoverse-n1"), (ARM, "apple-m1"), (X86, "x86-64")])
def test_plain_tiles_compile_for_any_processor(storage, triple, processor):
    assert "tile" in assembly(storage, 2, 1, PLAIN, triple, processor)


@pytest.mark.parametrize("storage", ["int8", "int4"])
@pytest.mark.parametrize("pairs", dict.fromkeys([PLAIN, PAIRS]))
def test_plain_arithmetic_gives_the_same_bits_as_the_units(storage, pairs):
    M, R, K = 3, 2, 64
    rng = np.random.default_rng(0)
    x = rng.standard_normal((M, K)).astype(np.float32)
    weight = (quantize_int8 if storage == "int8" else quantize_int4)(
        rng.standard_normal((R * LANES, K)).astype(np.float32))
    levels, scales = levels_reference(x)
    tile = np.zeros((K + 2, pairs.rows), np.int16)
    tile[:K].reshape(K // 2, pairs.rows, 2)[:, :M] = levels.reshape(M, K // 2, 2).transpose(1, 0, 2)
    tile[K:].reshape(-1).view(np.float32)[:M] = scales
    out = np.zeros((M, R * LANES), np.float32)
    module, machine = compiled(storage, M, R, pairs, binding.get_process_triple(), binding.get_host_cpu_name())
    with binding.create_mcjit_compiler(module, machine) as engine:
        engine.finalize_object()
        run = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(engine.get_function_address("tile"))
        run(tile.ctypes.data, 0, weight.ctypes.data, weight[0].size, K, out.ctypes.data, R * LANES)
    np.testing.assert_array_equal(out, linear_reference(x, weight, R * LANES))
