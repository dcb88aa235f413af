"""The tiles of gemm_tile.py as machine code that all compiled kernels call: built once, kept beside their compiled code.

numba copies what a kernel calls into the kernel and compiles it again. With the tiles inside, dozens of kernels would each
take seconds longer.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from foredraft.kernels.core import gemm_tile
from foredraft.kernels.core.backend import kept_in
from foredraft.kernels.core.gemm_tile import STORAGES, Pairs, Tile

# The symbol by which kernels find the tiles' addresses, an array [storage, rows, blocks].
TABLE = "foredraft_tiles"
# Blocks of a tile. Four of them are for a single row.
BLOCKS = (1, 2, 4)
MOST_ROWS = 8


def table_index(storage: int, rows: int, blocks: int) -> int:
    """Where the address of a tile is in the flat table."""
    return (storage * (MOST_ROWS + 1) + rows) * len(BLOCKS) + BLOCKS.index(blocks)


def tiles(pairs: Pairs) -> list[tuple[str, int, int]]:
    """Storage, rows and blocks of all tiles."""
    return [(storage, rows, blocks) for storage in STORAGES for rows in range(1, pairs.rows + 1) for blocks in BLOCKS
            if rows == 1 or blocks <= 2]


def machine():
    """LLVM's machine for this processor."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_triple(binding.get_process_triple()).create_target_machine(
        binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(), opt=3, jit=True)


def build(pairs: Pairs) -> bytes:
    """The object file of all tiles."""
    from llvmlite import binding, ir

    module = ir.Module()
    module.triple = binding.get_process_triple()
    integer = ir.IntType(64)
    for storage, rows, blocks in tiles(pairs):
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [integer] * 7), f"{storage}_{rows}x{blocks}")
        builder = ir.IRBuilder(function.append_basic_block())
        Tile(builder, storage, rows, blocks, pairs).emit(*function.args)
        builder.ret_void()
    return machine().emit_object(binding.parse_assembly(str(module)))


def stored(pairs: Pairs) -> bytes:
    """The object file, built if this processor's is not kept yet."""
    from llvmlite import binding

    folder = kept_in()
    if folder is None:
        return build(pairs)
    of = (Path(gemm_tile.__file__).read_text(), pairs, binding.get_host_cpu_name(),
          binding.get_host_cpu_features().flatten(), binding.llvm_version_info)
    file = Path(folder) / f"tiles-{hashlib.sha256(repr(of).encode()).hexdigest()[:12]}.o"
    try:
        return file.read_bytes()
    except OSError:
        code = build(pairs)
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as out:
            partial = out.name
            out.write(code)
        os.replace(partial, file)
    except OSError:
        # a full disk: the next process builds them again
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
    return code


def load(pairs: Pairs) -> tuple:
    """The engine that holds the tiles' machine code, and the table of their addresses."""
    from llvmlite import binding

    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(stored(pairs)))
    engine.finalize_object()
    table = np.zeros((len(STORAGES), MOST_ROWS + 1, len(BLOCKS)), np.int64)
    for storage, rows, blocks in tiles(pairs):
        address = engine.get_function_address(f"{storage}_{rows}x{blocks}")
        table.reshape(-1)[table_index(STORAGES.index(storage), rows, blocks)] = address
    return engine, table


def publish(pairs: Pairs) -> tuple:
    """Make the tiles known to all kernels that are compiled or loaded later; what it returns must live as long as they."""
    from llvmlite import binding

    engine, table = load(pairs)
    binding.add_symbol(TABLE, table.ctypes.data)
    return engine, table
