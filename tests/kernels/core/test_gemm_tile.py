"""The LLVM IR of tiles, compiled for processors that this machine may lack."""

import pytest

pytest.importorskip("llvmlite")

from llvmlite import binding, ir

from foredraft.kernels.core.gemm_tile import AVX2, AVX512, PLAIN, Tile

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"


def assembly(storage, M, R, pairs, triple, processor, features=""):
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 7), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    Tile(builder, storage, M, R, pairs).emit(*function.args)
    builder.ret_void()
    machine = binding.Target.from_triple(triple).create_target_machine(processor, features, opt=3)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    return machine.emit_assembly(parsed)


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
