"""Atomic operations on int64 words in memory, by address, and sleeping until a word changes, for compiled kernels.

All of them are sequentially consistent: in every thread's view they happen in one order.
"""

from __future__ import annotations

import platform
import sys

from foredraft.kernels.core.backend import intrinsic

# the number of Linux's system call futex; where it is unknown, threads that wait sleep for short times instead
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
_WAIT, _WAKE, _ALL = 128, 129, 2**31 - 1
# instructions that tell the processor that a thread spins
_SPIN = {"x86_64": ("llvm.x86.sse2.pause", ()), "AMD64": ("llvm.x86.sse2.pause", ()),
         "aarch64": ("llvm.aarch64.hint", (1,)), "arm64": ("llvm.aarch64.hint", (1,))}.get(platform.machine())


def _word(builder, address):
    from llvmlite import ir

    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def load_word(typingctx, address):
    """The word's value."""
    from numba import types

    def codegen(_context, builder, _signature, args):
        return builder.load_atomic(_word(builder, args[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def store_word(typingctx, address, value):
    """Set the word."""
    from numba import types

    def codegen(context, builder, _signature, args):
        builder.store_atomic(args[1], _word(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def add_to_word(typingctx, address, value):
    """Add to the word; returns its value before."""
    from numba import types

    def codegen(_context, builder, _signature, args):
        return builder.atomic_rmw("add", _word(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def replace_word(typingctx, address, expected, value):
    """Set the word if it is `expected`; returns whether it was."""
    from numba import types

    def codegen(_context, builder, _signature, args):
        found = builder.cmpxchg(_word(builder, args[0]), args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def spin(typingctx):
    """Wait for some processor cycles."""
    from numba import types

    def codegen(context, builder, _signature, _args):
        from llvmlite import ir
        from numba.core.cgutils import get_or_insert_function

        if _SPIN is not None:
            name, values = _SPIN
            i32 = ir.IntType(32)
            function = get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [i32] * len(values)), name)
            builder.call(function, [ir.Constant(i32, value) for value in values])
        return context.get_dummy_value()

    return types.void(), codegen


def _call_system(builder, name, *values):
    """Call a function of the C library with any number of words."""
    from llvmlite import ir
    from numba.core.cgutils import get_or_insert_function

    i64 = ir.IntType(64)
    function = get_or_insert_function(builder.module, ir.FunctionType(i64, [i64], var_arg=True), name)
    builder.call(function, [value if isinstance(value, ir.Value) else ir.Constant(i64, value) for value in values])


@intrinsic
def sleep_while(typingctx, address, value):
    """Sleep while the word's lower 32 bits are the value's; `wake` ends it. It may end earlier."""
    from numba import types

    def codegen(context, builder, _signature, args):
        if _FUTEX is not None:
            _call_system(builder, "syscall", _FUTEX, args[0], _WAIT, args[1], 0)
        elif sys.platform == "win32":
            _call_system(builder, "Sleep", 1)  # milliseconds
        else:
            _call_system(builder, "usleep", 100)  # microseconds
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def wake(typingctx, address):
    """Wake the threads that sleep on the word; call this after a change of the word."""
    from numba import types

    def codegen(context, builder, _signature, args):
        if _FUTEX is not None:
            _call_system(builder, "syscall", _FUTEX, args[0], _WAKE, _ALL)
        return context.get_dummy_value()

    return types.void(types.int64), codegen
